// The randomised Hadamard rotation of a block (arXiv 2509.25149, section 4.2).
#include "base/half.h"
#include "kernels/nvfp4/api.h"
#include "kernels/nvfp4/codec.h"

namespace longspur::kernels::nvfp4 {

void hadamard16(float* x) {
  constexpr uint32_t kNegative = 0xd7e8;  // bit k: the sign of element k
  for (int k = 0; k < kBlock; ++k)
    if (kNegative >> k & 1) x[k] = -x[k];
  for (int half = 1; half < kBlock; half *= 2) {
    for (int k = 0; k < kBlock; ++k) {
      if (k & half) continue;
      const float a = x[k], b = x[k + half];
      x[k] = a + b;
      x[k + half] = a - b;
    }
  }
  for (int k = 0; k < kBlock; ++k) x[k] = bf16_to_float(float_to_bf16(x[k] * 0.25f));
}

}  // namespace longspur::kernels::nvfp4
