// y[T, N] = x[T, K] W[N, K]^T for few tokens (T <= 8) on CUDA: decode, bound by reading W once.
#pragma once

#include <cstdint>

#include "kernels/common/cuda/status.h"

namespace longspur::kernels::qgemm::cuda {

inline constexpr int64_t kGemvTokens = 8;

enum class GemvResult {
  kBF16,
  kF32,
  // W [2 N, K] holds gate, then up; y = silu(gate) * up in bf16.
  kSwiGlu,
};

// W and the bias must not be written by earlier launches of the stream: the kernel reads them
// before those have ended.
struct GemvArgs {
  const void* x;      // [T, K] bf16
  const void* w;      // [N, K] bf16, rows 16-byte aligned
  const float* bias;  // [N] or null
  void* y;            // [T, N]
  int64_t t, n, k;
  GemvResult result;
};

// K must be a multiple of 8. Returns nullptr or the launch error's text.
bool gemv_accepts(int64_t t, int64_t k);
CudaStatus gemv(const GemvArgs& args, void* stream);

}  // namespace longspur::kernels::qgemm::cuda
