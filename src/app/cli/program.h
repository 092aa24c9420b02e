// The whole program but main(): finds the verb, merges its settings, runs it, turns what is thrown
// into one line on stderr and an exit code.
#pragma once

#include <span>
#include <string>
#include <vector>

namespace longspur::app::cli {

// 0 done, 1 failed, 2 impossible command line, 130 interrupted (128 + signal).
int run_program(std::span<const std::string> arguments);

// "longspur 0.1.0 (Release, GNU 12.2.0, x86_64)"
std::string version_line();

}  // namespace longspur::app::cli
