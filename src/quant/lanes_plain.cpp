// The lane kernels for any processor.
#include "quant/lanes-inl.h"

namespace longspur::quant {

extern const LaneKernels kLanesPlain = {"plain", gptq, gptq_beam, refine, multiply, subtract_rows};

}  // namespace longspur::quant
