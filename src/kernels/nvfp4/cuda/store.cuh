// What the end of every product shares: multipliers, bias, and the type of the result.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "kernels/nvfp4/cuda/matmul.h"

namespace longspur::kernels::nvfp4::cuda {

// One result: (sum * (multiplier of the row of W * that of the row of x)) + bias.
struct Finish {
  const float* w_multiplier;
  const float* x_multiplier;  // or null: 1
  const float* bias;          // or null: 0
  void* y;                    // [M, N]
  int64_t n;
  float unit;  // a power of two, of the operands' scaling
  bool w_per_row, x_per_row;
  Type type;

  __device__ float row_factor(int64_t row) const { return w_multiplier[w_per_row ? row : 0]; }
  __device__ float token_factor(int64_t token) const {
    return x_multiplier != nullptr ? x_multiplier[x_per_row ? token : 0] : 1.0f;
  }
  __device__ float value(int64_t token, int64_t row, float sum) const {
    const float scaled = sum * unit * (row_factor(row) * token_factor(token));
    return bias != nullptr ? scaled + bias[row] : scaled;
  }
  __device__ void store(int64_t token, int64_t row, float sum) const {
    const float result = value(token, row, sum);
    const int64_t at = token * n + row;
    switch (type) {
      case Type::kF32:
        static_cast<float*>(y)[at] = result;
        break;
      case Type::kBF16:
        static_cast<__nv_bfloat16*>(y)[at] = __float2bfloat16_rn(result);
        break;
      case Type::kF16:
        static_cast<__half*>(y)[at] = __float2half_rn(result);
        break;
    }
  }
  // Four neighbouring rows of one token, row a multiple of 4.
  __device__ void store4(int64_t token, int64_t row, const float4& sum) const {
    if (row + 4 > n || n % 4 != 0 || type == Type::kF16) {
      const float sums[4] = {sum.x, sum.y, sum.z, sum.w};
      for (int i = 0; i < 4 && row + i < n; ++i) store(token, row + i, sums[i]);
      return;
    }
    const float4 v = make_float4(value(token, row, sum.x), value(token, row + 1, sum.y),
                                 value(token, row + 2, sum.z), value(token, row + 3, sum.w));
    const int64_t at = token * n + row;
    if (type == Type::kF32) {
      *reinterpret_cast<float4*>(static_cast<float*>(y) + at) = v;
      return;
    }
    const __nv_bfloat162 pairs[2] = {__floats2bfloat162_rn(v.x, v.y),
                                     __floats2bfloat162_rn(v.z, v.w)};
    *reinterpret_cast<uint2*>(static_cast<__nv_bfloat16*>(y) + at) =
        *reinterpret_cast<const uint2*>(pairs);
  }
};

inline Finish make_finish(const MatmulArgs& args, float unit) {
  return {args.w.multiplier,         args.x_multiplier,         args.bias,  args.y, args.w.n, unit,
          args.w.multiplier_per_row, args.x_multiplier_per_row, args.y_type};
}

}  // namespace longspur::kernels::nvfp4::cuda
