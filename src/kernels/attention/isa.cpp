// Which instruction set the tiles run on: the best that the processor has, unless lowered.
#include <atomic>
#include <vector>

#include "base/error.h"
#include "kernels/attention/tile.h"

namespace longspur::kernels::attention {

namespace {

std::vector<const KernelTable*> available_tables() {
  std::vector<const KernelTable*> tables;
#if defined(__x86_64__)
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  if (avx512 && __builtin_cpu_supports("avx512bf16")) tables.push_back(table_avx512bf16());
  if (avx512) tables.push_back(table_avx512());
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

}  // namespace

const KernelTable& active_table() { return *chosen().load(std::memory_order_acquire); }
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

}  // namespace longspur::kernels::attention
