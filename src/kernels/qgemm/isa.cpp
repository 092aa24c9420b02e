#include "kernels/qgemm/isa.h"

#include <atomic>

#include "base/error.h"
#include "kernels/qgemm/api.h"

#if defined(__aarch64__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace longspur::kernels::qgemm {

namespace {

std::vector<const KernelTable*> available_tables() {
  std::vector<const KernelTable*> tables;
#if defined(__x86_64__)
  // These tests include the operating system's support for the registers.
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vnni"))
    tables.push_back(&kAvx512Kernels);
  // Every processor with AVX2 and FMA also converts halves (F16C).
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
    tables.push_back(&kAvx2Kernels);
#elif defined(__aarch64__)
  if ((getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0) tables.push_back(&kNeonKernels);
#endif
  tables.push_back(&kScalarKernels);
  return tables;
}

// The table in use: set once by the first call, changed by limit_isa only.
std::atomic<const KernelTable*>& chosen() {
  static std::atomic<const KernelTable*> table{available_tables().front()};
  return table;
}

}  // namespace

const KernelTable& active_kernels() { return *chosen().load(std::memory_order_acquire); }

std::vector<std::string_view> available_isas() {
  std::vector<std::string_view> names;
  for (const KernelTable* table : available_tables()) names.emplace_back(table->name);
  return names;
}

std::string_view active_isa() { return active_kernels().name; }

void limit_isa(std::string_view isa) {
  std::string names;
  for (const KernelTable* table : available_tables()) {
    if (isa == table->name) {
      chosen().store(table, std::memory_order_release);
      return;
    }
    names += concat(names.empty() ? "" : ", ", table->name);
  }
  throw Error(concat("instruction set: found '", isa, "', expected one of ", names));
}

}  // namespace longspur::kernels::qgemm
