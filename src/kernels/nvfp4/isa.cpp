// Which instruction set is used: the best that the processor has, unless lowered.
#include <atomic>

#include "base/error.h"
#include "kernels/nvfp4/kernels.h"

namespace longspur::kernels::nvfp4 {

namespace {

std::vector<const KernelTable*> available_tables() {
  std::vector<const KernelTable*> tables;
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq"))
    tables.push_back(table_avx512());
  // Every processor with AVX2 and FMA also converts halves (F16C).
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
    tables.push_back(table_avx2());
#endif
  tables.push_back(table_portable());
  return tables;
}

std::atomic<const KernelTable*>& chosen() {
  static std::atomic<const KernelTable*> table{available_tables().front()};
  return table;
}

const KernelTable& active_table() { return *chosen().load(std::memory_order_acquire); }

}  // namespace

std::vector<std::string_view> available_isas() {
  std::vector<std::string_view> names;
  for (const KernelTable* table : available_tables()) names.push_back(table->isa);
  return names;
}

std::string_view active_isa() { return active_table().isa; }

void limit_isa(std::string_view isa) {
  std::string names;
  for (const KernelTable* table : available_tables()) {
    if (table->isa == isa) {
      chosen().store(table, std::memory_order_release);
      return;
    }
    names += concat(names.empty() ? "" : ", ", table->isa);
  }
  throw Error(concat("instruction set: found '", isa, "', expected one of ", names));
}

void quantize(const QuantizeArgs& args, int64_t begin, int64_t end) {
  active_table().quantize(args, begin, end);
}

void dequantize(const DequantizeArgs& args, int64_t begin, int64_t end) {
  active_table().dequantize(args, begin, end);
}

float max_magnitude(
    const Source& source, bool hadamard, int64_t begin, int64_t end, float* row_amax) {
  return active_table().max_magnitude(source, hadamard, begin, end, row_amax);
}

}  // namespace longspur::kernels::nvfp4
