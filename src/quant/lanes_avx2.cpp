// The lane kernels for AVX2.
#include "quant/lanes-inl.h"

namespace longspur::quant {

extern const LaneKernels kLanesAvx2 = {"avx2", gptq, gptq_beam, refine, multiply, subtract_rows};

}  // namespace longspur::quant
