// The lane kernels for AVX-512.
#include "quant/lanes-inl.h"

namespace longspur::quant {

extern const LaneKernels kLanesAvx512 = {"avx512", gptq,     gptq_beam,
                                         refine,   multiply, subtract_rows};

}  // namespace longspur::quant
