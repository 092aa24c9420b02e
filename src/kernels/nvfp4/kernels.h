// The functions of one instruction set, and which of them are in use. Private to this family.
#pragma once

#include <string_view>
#include <vector>

#include "kernels/nvfp4/api.h"

namespace longspur::kernels::nvfp4 {

struct KernelTable {
  std::string_view isa;
  void (*quantize)(const QuantizeArgs& args, int64_t begin, int64_t end);
  void (*dequantize)(const DequantizeArgs& args, int64_t begin, int64_t end);
  float (*max_magnitude)(
      const Source& source, bool hadamard, int64_t begin, int64_t end, float* row_amax);
};

// Defined where the build has the unit.
const KernelTable* table_avx512();
const KernelTable* table_avx2();
const KernelTable* table_portable();

// Names that limit_isa takes on this machine, best first.
std::vector<std::string_view> available_isas();

}  // namespace longspur::kernels::nvfp4
