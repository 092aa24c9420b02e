// The instruction sets that the tiles run on.
#include <vector>

#include "kernels/attention/tile.h"
#include "kernels/common/isa_choice.h"

namespace longspur::kernels::attention {

namespace {

std::vector<const KernelTable*> available_tables() {
  std::vector<const KernelTable*> tables;
#if defined(__x86_64__)
  const bool avx512 = has_avx512();
  if (avx512 && __builtin_cpu_supports("avx512bf16")) tables.push_back(table_avx512bf16());
  if (avx512) tables.push_back(table_avx512());
  if (has_avx2()) tables.push_back(table_avx2());
#endif
  tables.push_back(table_portable());
  return tables;
}

IsaChoice<KernelTable>& choice() {
  static IsaChoice<KernelTable> choice(available_tables());
  return choice;
}

}  // namespace

const KernelTable& active_table() { return choice().active(); }
std::string_view active_isa() { return active_table().isa; }
void limit_isa(std::string_view isa) { choice().limit(isa); }

}  // namespace longspur::kernels::attention
