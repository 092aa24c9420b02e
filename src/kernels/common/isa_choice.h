// Which instruction set a family of CPU kernels runs on: the best that the processor has, unless
// tests lower it. A family has a table of functions for each, with its name in `isa`.
#pragma once

#include <atomic>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/error.h"

namespace longspur::kernels {

#if defined(__x86_64__)
// These tests include the operating system's support for the registers.
inline bool has_avx512() {  // F, BW, VL and DQ
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}
// With FMA; every processor with both also converts halves (F16C).
inline bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
#endif

template <class Table>
class IsaChoice {
 public:
  // tables: those that this machine can run, best first; not empty.
  explicit IsaChoice(std::vector<const Table*> tables)
      : tables_(std::move(tables)), active_(tables_.front()) {}

  const Table& active() const { return *active_.load(std::memory_order_acquire); }

  std::vector<std::string_view> names() const {
    std::vector<std::string_view> names;
    for (const Table* table : tables_) names.emplace_back(table->isa);
    return names;
  }

  // Throws Error on a name that is unknown or that this machine cannot run.
  void limit(std::string_view isa) {
    std::string names;
    for (const Table* table : tables_) {
      if (table->isa == isa) {
        active_.store(table, std::memory_order_release);
        return;
      }
      names += concat(names.empty() ? "" : ", ", table->isa);
    }
    throw Error(concat("instruction set: found '", isa, "', expected one of ", names));
  }

 private:
  std::vector<const Table*> tables_;
  std::atomic<const Table*> active_;
};

}  // namespace longspur::kernels
