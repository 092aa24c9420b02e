// Between quantize.cu and the kernels it launches: parameters of each, and the launchers.
#pragma once

#include "kernels/nvfp4/cuda/exact.cuh"
#include "kernels/nvfp4/cuda/quantize.h"

namespace longspur::kernels::nvfp4::cuda {

// What a row is made of before it is quantised.
enum class Input { kPlain, kNorm, kSwiGlu };

// One thread block a row; blocks of 16 along it.
struct RowParams {
  const void* x = nullptr;
  DType dtype = DType::kBF16;
  int64_t rows = 0, columns = 0, ld = 0;  // columns: blocks of 16
  Rules rules{};
  const float* amax = nullptr;  // null: the row's own
  bool amax_per_row = false;
  const float* importance = nullptr;
  const float* weight = nullptr;  // kNorm
  float eps = 0;
  Quantized out;
  bool aligned = false;  // 16 bytes at every block
};
void launch_rows(const RowParams& params, Input input, cudaStream_t stream);

// Whether rows_bf16.cuh has the rule and metric; blocks must then hold bf16 values.
bool scores_in_half(const Rules& rules, const float* importance);
// Whether launch_rows_bf16 serves it: bf16 in aligned rows, rounded to the nearest.
bool accepts_bf16(const RowParams& params);
// `reversed`: from the last row to the first.
void launch_rows_bf16(const RowParams& params, bool reversed, cudaStream_t stream);
// The same after RMSNorm or SwiGLU.
bool accepts_bf16_fused(const RowParams& params);
void launch_rows_bf16_fused(const RowParams& params, Input input, cudaStream_t stream);
// Zeros the padding of swizzled scales.
void launch_padding(const RowParams& params, cudaStream_t stream);
// Largest magnitude of aligned bf16 rows into *amax, which holds 0 before.
void launch_amax_bf16(const RowParams& params, float* amax, cudaStream_t stream);

// One orientation of a tiled matrix.
struct Side {
  Rules rules{};
  const float* amax = nullptr;
  int64_t amax_stride = 0;  // 0: one for all, 1: by row, 16: at the first row of each tile
  const float* importance = nullptr;
  bool borrows_scales = false;  // of the other side; both have 2-D tiles
  bool half_scores = false;     // see scores_in_half
  Quantized out;
};
// Matrix as it lies in memory. `along`: blocks along memory's rows; `down`: down its columns.
struct TileParams {
  const void* x = nullptr;
  DType dtype = DType::kBF16;
  int64_t height = 0, width = 0, ld = 0;
  Side along, down;
};
void launch_tiles(const TileParams& params, cudaStream_t stream);
// Writes the largest magnitudes where the sides' amax points, which holds zeros before.
void launch_tile_amax(const TileParams& params, float* along, float* down, cudaStream_t stream);

}  // namespace longspur::kernels::nvfp4::cuda
