// The decoder's memory-bound steps on CUDA. Pointers are device pointers, `stream` is a
// cudaStream_t. The residual stream is fp32; what products read and write is bf16 (or fp32 for
// reference arithmetic). Each launcher returns nullptr or the launch error's text.
#pragma once

#include <cstdint>

#include "kernels/common/cuda/status.h"

namespace longspur::kernels::elementwise::cuda {

enum class Type { kF32, kBF16 };

// hidden[t] = embedding[tokens[t]]
struct EmbedArgs {
  const int32_t* tokens;  // [T]
  const void* embedding;  // [V, C] of `type`
  float* hidden;          // [T, C]
  int64_t t, c;
};
CudaStatus embed(const EmbedArgs& args, Type type, void* stream);

// hidden += delta (delta may be null), then y = hidden / sqrt(mean(hidden^2) + eps) * weight.
// y may be null: only the addition. C is at most kMaxNormWidth. The weight must not be written by
// earlier launches of the stream: it is read before those have ended.
inline constexpr int64_t kMaxNormWidth = 16384;
struct AddNormArgs {
  float* hidden;        // [T, C], updated
  const void* delta;    // [T, C] of `type` or null
  const float* weight;  // [C]
  void* y;              // [T, C] of `type` or null
  float eps;
  int64_t t, c;
};
CudaStatus add_rms_norm(const AddNormArgs& args, Type type, void* stream);

// y = silu(x[:, :F]) * x[:, F:]
struct SwiGluArgs {
  const void* x;  // [T, 2 F] of `type`
  void* y;        // [T, F]
  int64_t t, f;
};
CudaStatus swiglu(const SwiGluArgs& args, Type type, void* stream);

// y[r] = x[rows[r]]
struct PickRowsArgs {
  const void* x;        // [T, width] of `type`
  const int32_t* rows;  // [R]
  void* y;              // [R, width], apart from x
  int64_t r, width;
};
CudaStatus pick_rows(const PickRowsArgs& args, Type type, void* stream);

}  // namespace longspur::kernels::elementwise::cuda
