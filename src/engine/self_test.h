// A quick check that the kernels this machine chose compute what they should: each against the
// slow loops in double. It finds miscompiled kernels and lying processors, not rounding errors; the
// tests argue tolerances, this takes generous ones.
#pragma once

#include <string>
#include <vector>

namespace longspur::engine {

struct SelfTestCase {
  std::string name;  // "qgemm Q4_1"
  std::string isa;   // empty where the family does not say
  double error = 0;  // largest difference, relative to what may be
  bool passed = false;
};

std::vector<SelfTestCase> self_test();

}  // namespace longspur::engine
