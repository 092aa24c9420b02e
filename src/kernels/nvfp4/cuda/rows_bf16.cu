// Rows of bf16 quantised at the speed of memory, and the largest magnitude of a matrix.
#include "kernels/nvfp4/cuda/rows_bf16_kernel.cuh"

namespace longspur::kernels::nvfp4::cuda {

namespace {

__global__ void __launch_bounds__(256) amax_bf16_kernel(
    const __nv_bfloat16* x, int64_t rows, int64_t vectors, int64_t ld, float* amax) {
  __shared__ uint32_t scratch[256 / kWarp];
  uint32_t most = 0;
  for (int64_t r = blockIdx.x; r < rows; r += gridDim.x) {
    const auto* row = reinterpret_cast<const uint4*>(x + r * ld);
#pragma unroll 4
    for (int64_t i = threadIdx.x; i < vectors; i += 256) {
      const uint4 v = row[i];
      most = __vmaxu2(most, __vmaxu2(__vmaxu2(v.x & kMagnitudes, v.y & kMagnitudes),
                                     __vmaxu2(v.z & kMagnitudes, v.w & kMagnitudes)));
    }
  }
  most = __reduce_max_sync(~0u, max(most & 0xffffu, most >> 16));
  if (threadIdx.x % kWarp == 0) scratch[threadIdx.x / kWarp] = most;
  __syncthreads();
  if (threadIdx.x >= kWarp) return;
  most = __reduce_max_sync(~0u, threadIdx.x < 256 / kWarp ? scratch[threadIdx.x] : 0);
  if (threadIdx.x == 0) atomicMax(reinterpret_cast<unsigned*>(amax), amax_bits(most << 16));
}

__global__ void zero_padding_kernel(Quantized out, int64_t rows, int64_t columns) {
  const int64_t r = blockIdx.x;
  for (int64_t block = (r < rows ? columns : 0) + threadIdx.x; block < (columns + 3) / 4 * 4;
       block += blockDim.x)
    out.scales[swizzled_scale_offset(r, block, columns)] = 0;
}

template <Rule kRule, Metric kMetric, int kBlocks>
void launch(const RowParams& params, bool reversed, cudaStream_t stream) {
  const int64_t halves = (params.columns + kPerThread - 1) / kPerThread;
  const int64_t wanted = (halves + kWarp - 1) / kWarp * kWarp;
  const bool wide = params.amax == nullptr && wanted > kMaxThreads / 2;
  const auto threads = unsigned(wide ? kMaxThreads : min(wanted, int64_t(kMaxThreads / 2)));
  const int64_t per_part = kPerThread * int64_t(threads);
  const dim3 grid(unsigned(params.rows), unsigned((params.columns + per_part - 1) / per_part));
  if (wide)
    rows_bf16_kernel<Input::kPlain, kRule, kMetric, kMaxThreads, kBlocks / 2>
        <<<grid, threads, 0, stream>>>(params, reversed, kMagnitudes);
  else
    rows_bf16_kernel<Input::kPlain, kRule, kMetric, kMaxThreads / 2, kBlocks>
        <<<grid, threads, 0, stream>>>(params, reversed, kMagnitudes);
}

}  // namespace

bool scores_in_half(const Rules& rules, const float* importance) {
  const bool fixed = rules.rule == Rule::kStatic6 || rules.rule == Rule::kStatic4;
  const bool scored = (rules.rule == Rule::kFourOverSix && rules.metric != Metric::kAbsMax) ||
                      (rules.rule == Rule::kSweep && rules.metric == Metric::kMse);
  return (fixed || scored) && rules.rounding == Rounding::kNearest && !rules.tile_2d &&
         importance == nullptr;
}

bool accepts_bf16(const RowParams& params) {
  return params.dtype == DType::kBF16 && params.aligned &&
         scores_in_half(params.rules, params.importance) && !params.rules.hadamard &&
         (params.amax != nullptr || params.columns <= kPerThread * kMaxThreads) &&
         params.columns < int64_t(kPerThread) * kMaxThreads / 2 * 65535;
}

void launch_padding(const RowParams& params, cudaStream_t stream) {
  if (!params.out.swizzled || (params.rows % 128 == 0 && params.columns % 4 == 0)) return;
  const int64_t rows = (params.rows + 127) / 128 * 128;
  zero_padding_kernel<<<unsigned(rows), 128, 0, stream>>>(params.out, params.rows, params.columns);
}

void launch_rows_bf16(const RowParams& params, bool reversed, cudaStream_t stream) {
  launch_padding(params, stream);
  switch (params.rules.rule) {
    case Rule::kFourOverSix:
      if (params.rules.metric == Metric::kMse)
        launch<Rule::kFourOverSix, Metric::kMse, 5>(params, reversed, stream);
      else
        launch<Rule::kFourOverSix, Metric::kMae, 5>(params, reversed, stream);
      break;
    case Rule::kSweep:
      launch<Rule::kSweep, Metric::kMse, 4>(params, reversed, stream);
      break;
    default:
      launch<Rule::kStatic6, Metric::kMse, 6>(params, reversed, stream);
  }
}

void launch_amax_bf16(const RowParams& params, float* amax, cudaStream_t stream) {
  const auto grid = unsigned(min(params.rows, int64_t(132) * 8));
  amax_bf16_kernel<<<grid, 256, 0, stream>>>(static_cast<const __nv_bfloat16*>(params.x),
                                             params.rows, params.columns * 2, params.ld, amax);
}

}  // namespace longspur::kernels::nvfp4::cuda
