// NVFP4 on CUDA: quantisation, fused with RMSNorm or SwiGLU where wanted, of a matrix or of it and
// its transpose at once, and dequantisation. The formulas, special cases and random numbers are
// those of kernels/nvfp4/api.h, bit for bit, but where Quantize::strict says otherwise. Pointers
// are device pointers, `stream` is a cudaStream_t; nothing waits for the device and no result
// depends on the order in which blocks run. Each launcher returns nullptr or the error's text.
#pragma once

#include <cstdint>

#include "kernels/common/cuda/status.h"
#include "kernels/nvfp4/api.h"

namespace longspur::kernels::nvfp4::cuda {

// Where the largest magnitude comes from: given by the caller; of each row, found in the one pass
// over it; of the whole matrix, found in a pass of its own. With tile_2d the 16 rows of a tile
// share the largest of theirs, and a given [rows] amax is read at the first row of each tile.
enum class Amax { kGiven, kRow, kTensor };

// One quantised matrix [rows, K].
struct Quantized {
  uint8_t* codes = nullptr;     // [rows, K / 2], 8-byte aligned
  uint8_t* scales = nullptr;    // [rows, K / 16], or swizzled_scale_bytes(rows, K / 16)
  float* multiplier = nullptr;  // [1], or [rows] where amax is by row; null: not wanted
  bool swizzled = false;        // 128 x 4 tiles (codec.h), the padding written as zeros
};

struct Quantize {
  Source source;
  Recipe recipe;
  Amax amax_from = Amax::kRow;
  const float* amax = nullptr;  // kGiven: [1], or [rows] when amax_per_row
  bool amax_per_row = false;
  const float* importance = nullptr;  // [K] or null
  // false: bf16 matrices may be scored in half precision, so that another candidate of nearly the
  // same error is picked in less than 1 block of 1,000. Codes are exact for the scale either way.
  bool strict = false;
  Quantized out;
};
// Device bytes of `workspace`, which the next call on the same stream may use again.
int64_t workspace_bytes(const Quantize& args);
CudaStatus quantize(const Quantize& args, void* workspace, void* stream);

// A matrix and its transpose from one read of it, as training wants activations, gradients and
// weights: `out` [rows, K] and `transposed_out` [K, rows]. Rows and K are multiples of 16. When
// both recipes have 2-D tiles and the same rule, the transpose takes the scales of `out`.
struct QuantizeBoth {
  Source source;  // not transposed
  Recipe recipe, transposed_recipe;
  Amax amax_from = Amax::kTensor;  // kGiven ([1]) or kTensor
  const float* amax = nullptr;
  const float* transposed_amax = nullptr;  // differs from amax when one of the two is rotated
  bool strict = false;                     // as Quantize::strict
  Quantized out, transposed_out;
};
int64_t workspace_bytes(const QuantizeBoth& args);
CudaStatus quantize_both(const QuantizeBoth& args, void* workspace, void* stream);

// y = x / sqrt(mean(x^2) + eps) * weight in fp32, rounded to x's type as if it were stored, though
// it never is, and quantised by its rows' amax, not strict.
struct NormQuantize {
  const void* x = nullptr;  // [rows, K] of `dtype`, rows at stride ld
  DType dtype = DType::kBF16;
  int64_t rows = 0, k = 0, ld = 0;
  const float* weight = nullptr;  // [K]
  float eps = 1e-5f;
  Recipe recipe;  // no tile_2d
  Quantized out;
};
CudaStatus rms_norm_quantize(const NormQuantize& args, void* stream);

// y = silu(x[:, :K]) * x[:, K:], likewise.
struct SwiGluQuantize {
  const void* x = nullptr;  // [rows, 2 K] of `dtype`, rows at stride ld
  DType dtype = DType::kBF16;
  int64_t rows = 0, k = 0, ld = 0;
  Recipe recipe;
  Quantized out;
};
CudaStatus swiglu_quantize(const SwiGluQuantize& args, void* stream);

// swizzled: of args.scales. Any K that is a multiple of 16.
CudaStatus dequantize(const DequantizeArgs& args, bool swizzled, void* stream);

}  // namespace longspur::kernels::nvfp4::cuda
