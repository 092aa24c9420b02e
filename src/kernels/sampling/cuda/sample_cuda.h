// Draws tokens on CUDA, one block a row, with the semantics of kernels/sampling/api.h. The random
// number comes from the host: it is the same function of (seed, stream, position) there and here,
// so both choose the same token but for rounding at the edge between two. `stream` is a
// cudaStream_t; returns nullptr or the launch error's text.
#pragma once

#include <cstdint>

#include "kernels/common/cuda/status.h"
#include "kernels/sampling/cuda/rows.h"

namespace longspur::kernels::sampling::cuda {

struct SampleRowsArgs {
  const float* logits;  // [R, V]
  float* adjusted;      // [R, V] scratch
  int32_t* counts;      // [R, V] scratch, zero before and after
  const Row* rows;      // [R]
  const int32_t* ids;   // prompts, outputs and bans of all rows
  const Bias* bias;
  RowResult* results;  // [R]
  Entry* top;          // [R, kMaxTop] in no particular order
  int64_t row_count, vocab;
};
CudaStatus sample_rows(const SampleRowsArgs& args, void* stream);

}  // namespace longspur::kernels::sampling::cuda
