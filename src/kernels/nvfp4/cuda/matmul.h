// Products with NVFP4 weights on Hopper (sm_90a): y[M, N] = x[M, K] W[N, K]^T + bias.
//
// W is NVFP4. x is bf16, fp16 or fp32 (W4A16), or NVFP4 as well (W4A4). Every e2m1 * e4m3 is exact
// in bf16 and in fp16, so the tensor cores multiply the exact operands; the fp32 multipliers of W
// and x are applied to the fp32 sums. W4A4: error <= 1e-6 * sum |a b|, because partial sums are
// added up in rounded fp32 every 32 columns (the tensor cores' own accumulation truncates).
//
// Weights come in the canonical layout or packed, an order made once by pack() that the fast
// kernels read; the canonical one is fast for few tokens only. Sums are taken in a fixed order:
// equal inputs give equal results, but a row's result may depend on M in its last bits.
#pragma once

#include <cstdint>

#include "kernels/common/cuda/status.h"
#include "kernels/nvfp4/packed_size.h"

namespace longspur::kernels::nvfp4::cuda {

using nvfp4::packed_bytes;

enum class Type { kBF16, kF16, kF32 };

// W [N, K], not to be written by earlier launches of the stream that may still run: kernels read it
// before those have ended. Either of codes with scales, and packed, may be null.
struct Weights {
  const uint8_t* codes = nullptr;     // [N, K / 2], low nibble first, 16-byte aligned
  const uint8_t* scales = nullptr;    // [N, K / 16] E4M3, the sign bit is ignored
  const void* packed = nullptr;       // of packed_bytes(N, K), 16-byte aligned
  const float* multiplier = nullptr;  // [1], or [N] when multiplier_per_row
  bool multiplier_per_row = false;
  int64_t n = 0, k = 0;
};

struct MatmulArgs {
  Weights w;
  // Either x, or codes, scales and multiplier of an NVFP4 x.
  const void* x = nullptr;  // [M, K], 16-byte aligned
  Type x_type = Type::kBF16;
  const uint8_t* x_codes = nullptr;     // [M, K / 2]
  const uint8_t* x_scales = nullptr;    // [M, K / 16]
  const float* x_multiplier = nullptr;  // [1], or [M] when x_multiplier_per_row
  bool x_multiplier_per_row = false;
  const float* bias = nullptr;  // [N] or null
  void* y = nullptr;            // [M, N]
  Type y_type = Type::kBF16;
  int64_t m = 0;
  void* workspace = nullptr;  // matmul_workspace_bytes(args), 16-byte aligned
};

// Canonical to packed. K must be a multiple of 16.
CudaStatus pack(const Weights& w, void* packed, void* stream);
// The same from GGUF's blocks of 64 elements in 36 bytes: four scales, then for each 16 elements
// eight bytes, of which byte j holds element j low and j + 8 high. K must be a multiple of 64.
CudaStatus pack_blocks(const void* blocks, int64_t n, int64_t k, void* packed, void* stream);

// Whether matmul takes these sizes: K a positive multiple of 16, M and N at least 1.
bool matmul_accepts(int64_t m, int64_t n, int64_t k);
int64_t matmul_workspace_bytes(const MatmulArgs& args);
// The name of the implementation that matmul will take for these sizes and types.
const char* matmul_choice(const MatmulArgs& args);
// Returns nullptr or the error's text. Launches only: fit for recording.
CudaStatus matmul(const MatmulArgs& args, void* stream);

}  // namespace longspur::kernels::nvfp4::cuda
