// Rows quantised exactly as quantize_ref does, whatever rule, metric, rounding and type: one thread
// block a row, a thread a block of 16. A row is read from memory once; its later passes (the mean
// square of RMSNorm, the largest magnitude, the codes) find it in registers or L1.
#include "kernels/common/cuda/launch.cuh"
#include "kernels/nvfp4/cuda/kernels.cuh"

namespace longspur::kernels::nvfp4::cuda {

namespace {

constexpr int kMaxThreads = 512;

template <class T>
__device__ void load_block(const T* from, bool aligned, float (&x)[kBlock]) {
  if (aligned) {
#pragma unroll
    for (int i = 0; i < kBlock; i += Vec<T>::kSize) {
      const Vec<T> v = *reinterpret_cast<const Vec<T>*>(from + i);
#pragma unroll
      for (int j = 0; j < Vec<T>::kSize; ++j) x[i + j] = widen(v.data[j]);
    }
  } else {
#pragma unroll
    for (int i = 0; i < kBlock; ++i) x[i] = widen(from[i]);
  }
}

template <class T>
__device__ float rounded(float x);
template <>
__device__ float rounded<float>(float x) {
  return x;
}
template <>
__device__ float rounded<__nv_bfloat16>(float x) {
  return widen(__float2bfloat16_rn(x));
}
template <>
__device__ float rounded<__half>(float x) {
  return widen(__float2half_rn(x));
}

// Block `block` of a row, as it is to be quantised.
template <class T, Input kInput>
__device__ void fetch(
    const RowParams& params, const T* row, int64_t block, float scale, float (&x)[kBlock]) {
  load_block(row + block * kBlock, params.aligned, x);
  if constexpr (kInput == Input::kNorm) {
#pragma unroll
    for (int i = 0; i < kBlock; ++i)
      x[i] = rounded<T>(x[i] * scale * params.weight[block * kBlock + i]);
  }
  if constexpr (kInput == Input::kSwiGlu) {
    float up[kBlock];
    load_block(row + (params.columns + block) * kBlock, params.aligned, up);
#pragma unroll
    for (int i = 0; i < kBlock; ++i)
      x[i] = rounded<T>(__fdividef(x[i], 1.0f + __expf(-x[i])) * up[i]);
  }
  if (params.rules.hadamard) rotate(x);
}

// Largest of `value` over the thread block.
__device__ uint32_t block_max_bits(uint32_t value) {
  __shared__ uint32_t scratch[kWarp];
  value = __reduce_max_sync(~0u, value);
  if (threadIdx.x % kWarp == 0) scratch[threadIdx.x / kWarp] = value;
  __syncthreads();
  for (unsigned i = 0; i < blockDim.x / kWarp; ++i) value = max(value, scratch[i]);
  return value;
}

template <class T>
__device__ float norm_scale(const RowParams& params, const T* row) {
  __shared__ float scratch[kWarp + 1];
  float sum = 0;
  for (int64_t block = threadIdx.x; block < params.columns; block += blockDim.x) {
    float x[kBlock];
    load_block(row + block * kBlock, params.aligned, x);
#pragma unroll
    for (int i = 0; i < kBlock; ++i) sum += x[i] * x[i];
  }
  return rsqrtf(block_sum(sum, scratch) / float(params.columns * kBlock) + params.eps);
}

__device__ void zero_padding(const Quantized& out, int64_t row, int64_t from, int64_t columns) {
  for (int64_t block = from + threadIdx.x; block < (columns + 3) / 4 * 4; block += blockDim.x)
    out.scales[swizzled_scale_offset(row, block, columns)] = 0;
}

template <class T, Input kInput>
__global__ void __launch_bounds__(kMaxThreads) row_kernel(RowParams params) {
  const int64_t r = blockIdx.x, columns = params.columns;
  if (r >= params.rows) return zero_padding(params.out, r, 0, columns);
  const T* row = static_cast<const T*>(params.x) + r * params.ld;
  const float scale = kInput == Input::kNorm ? norm_scale(params, row) : 1.0f;
  const bool held = columns <= blockDim.x;  // each thread keeps its one block
  float x[kBlock], amax;
  if (params.amax != nullptr) {
    amax = params.amax[params.amax_per_row ? r : 0];
  } else {
    uint32_t magnitude = 0;
    for (int64_t block = threadIdx.x; block < columns; block += blockDim.x) {
      fetch<T, kInput>(params, row, block, scale, x);
      magnitude = max(magnitude, magnitude_bits(x));
    }
    amax = __uint_as_float(amax_bits(block_max_bits(magnitude)));
  }
  if (threadIdx.x == 0 && params.out.multiplier != nullptr &&
      (r == 0 || params.amax == nullptr || params.amax_per_row))
    params.out.multiplier[r] = multiplier_of(amax, params.rules.top);
  const Encoding e = encoding_of(amax, params.rules);
  for (int64_t block = threadIdx.x; block < columns; block += blockDim.x) {
    if (!held || params.amax != nullptr) fetch<T, kInput>(params, row, block, scale, x);
    const float* importance =
        params.importance != nullptr ? params.importance + block * kBlock : nullptr;
    const uint32_t s = choose_scale<false>(params.rules, e, x, importance);
    const uint64_t counter = uint64_t((r * columns + block) * kBlock);
    store_block(params.out, r, block, columns, encode_block(params.rules, e, x, s, counter), s);
  }
  if (params.out.swizzled) zero_padding(params.out, r, columns, columns);
}

template <class T>
void launch(const RowParams& params, Input input, cudaStream_t stream) {
  const int64_t rows = params.out.swizzled ? (params.rows + 127) / 128 * 128 : params.rows;
  const int64_t warps = (params.columns + kWarp - 1) / kWarp;
  const dim3 grid{unsigned(rows)}, block{unsigned(min(warps * kWarp, int64_t(kMaxThreads)))};
  if (input == Input::kPlain) row_kernel<T, Input::kPlain><<<grid, block, 0, stream>>>(params);
  if (input == Input::kNorm) row_kernel<T, Input::kNorm><<<grid, block, 0, stream>>>(params);
  if (input == Input::kSwiGlu) row_kernel<T, Input::kSwiGlu><<<grid, block, 0, stream>>>(params);
}

}  // namespace

void launch_rows(const RowParams& params, Input input, cudaStream_t stream) {
  if (params.dtype == DType::kF32) launch<float>(params, input, stream);
  if (params.dtype == DType::kBF16) launch<__nv_bfloat16>(params, input, stream);
  if (params.dtype == DType::kF16) launch<__half>(params, input, stream);
}

}  // namespace longspur::kernels::nvfp4::cuda
