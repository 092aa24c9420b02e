// The instruction sets that quantisation runs on.
#include "kernels/common/isa_choice.h"
#include "kernels/nvfp4/kernels.h"

namespace longspur::kernels::nvfp4 {

namespace {

std::vector<const KernelTable*> available_tables() {
  std::vector<const KernelTable*> tables;
#if defined(__x86_64__)
  if (has_avx512()) tables.push_back(table_avx512());
  if (has_avx2()) tables.push_back(table_avx2());
#endif
  tables.push_back(table_portable());
  return tables;
}

IsaChoice<KernelTable>& choice() {
  static IsaChoice<KernelTable> choice(available_tables());
  return choice;
}

const KernelTable& active_table() { return choice().active(); }

}  // namespace

std::vector<std::string_view> available_isas() { return choice().names(); }
std::string_view active_isa() { return active_table().isa; }
void limit_isa(std::string_view isa) { choice().limit(isa); }

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
