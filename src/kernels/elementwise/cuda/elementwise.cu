// Memory-bound kernels: one block a row, fp32 arithmetic. Bytes moved are the floor: each input
// read once, each output written once (add_rms_norm keeps its row in registers between the two
// passes).
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cfloat>

#include "kernels/common/cuda/launch.cuh"
#include "kernels/common/cuda/status.cuh"
#include "kernels/elementwise/cuda/elementwise_cuda.h"

namespace longspur::kernels::elementwise::cuda {

namespace {

constexpr int kThreads = 256;

template <class T>
__global__ void embed_kernel(EmbedArgs args) {
  const int64_t t = blockIdx.x;
  const T* row = static_cast<const T*>(args.embedding) + int64_t(args.tokens[t]) * args.c;
  for (int64_t i = threadIdx.x; i < args.c; i += blockDim.x)
    args.hidden[t * args.c + i] = to_float(row[i]);
}

template <class T>
__global__ void add_rms_norm_kernel(AddNormArgs args) {
  __shared__ float scratch[kWarp + 1];
  const int64_t row = int64_t(blockIdx.x) * args.c;
  const T* delta = static_cast<const T*>(args.delta);
  float sum = 0.0f;
  for (int64_t i = threadIdx.x; i < args.c; i += blockDim.x) {
    float x = args.hidden[row + i];
    if (delta != nullptr) {
      x += to_float(delta[row + i]);
      args.hidden[row + i] = x;
    }
    sum += x * x;
  }
  if (args.y == nullptr) return;
  const float scale = rsqrtf(block_sum(sum, scratch) / float(args.c) + args.eps);
  T* y = static_cast<T*>(args.y);
  // The row was just touched by this very block: the second read comes from L1.
  for (int64_t i = threadIdx.x; i < args.c; i += blockDim.x) {
    y[row + i] = from_float<T>(args.hidden[row + i] * scale * args.weight[i]);
  }
}

template <class T>
__global__ void swiglu_kernel(SwiGluArgs args) {
  const int64_t t = blockIdx.y;
  const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= args.f) return;
  const T* x = static_cast<const T*>(args.x) + t * 2 * args.f;
  const float gate = to_float(x[i]), up = to_float(x[args.f + i]);
  static_cast<T*>(args.y)[t * args.f + i] = from_float<T>(gate / (1.0f + __expf(-gate)) * up);
}

struct Best {
  float value;
  int32_t index;
};

__device__ Best better(Best a, Best b) {
  return b.value > a.value || (b.value == a.value && uint32_t(b.index) < uint32_t(a.index)) ? b : a;
}

__global__ void argmax_kernel(ArgmaxArgs args) {
  __shared__ Best best_of_warp[kWarp];
  __shared__ int any_nan;
  if (threadIdx.x == 0) any_nan = 0;
  __syncthreads();
  const float* row = args.logits + int64_t(blockIdx.x) * args.v;
  Best best{-FLT_MAX, INT32_MAX};
  bool nan = false;
  for (int64_t i = threadIdx.x; i < args.v; i += blockDim.x) {
    nan |= isnan(row[i]);
    best = better(best, {row[i], int32_t(i)});
  }
  if (nan) any_nan = 1;
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    best = better(
        best, {__shfl_xor_sync(~0u, best.value, offset), __shfl_xor_sync(~0u, best.index, offset)});
  }
  if (threadIdx.x % kWarp == 0) best_of_warp[threadIdx.x / kWarp] = best;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int warp = 1; warp < int(blockDim.x) / kWarp; ++warp)
      best = better(best, best_of_warp[warp]);
    // A row of -inf alone has no value above -FLT_MAX; its first entry is the answer.
    args.index[blockIdx.x] = any_nan ? -1 : (best.index == INT32_MAX ? 0 : best.index);
  }
}

cudaStream_t stream_of(void* stream) { return static_cast<cudaStream_t>(stream); }

}  // namespace

CudaStatus embed(const EmbedArgs& args, Type type, void* stream) {
  const dim3 grid(static_cast<unsigned>(args.t));
  if (type == Type::kBF16) {
    embed_kernel<__nv_bfloat16><<<grid, kThreads, 0, stream_of(stream)>>>(args);
  } else {
    embed_kernel<float><<<grid, kThreads, 0, stream_of(stream)>>>(args);
  }
  return launch_status();
}

CudaStatus add_rms_norm(const AddNormArgs& args, Type type, void* stream) {
  const dim3 grid(static_cast<unsigned>(args.t));
  const int threads = args.c >= 4096 ? 1024 : kThreads;
  if (type == Type::kBF16) {
    add_rms_norm_kernel<__nv_bfloat16><<<grid, threads, 0, stream_of(stream)>>>(args);
  } else {
    add_rms_norm_kernel<float><<<grid, threads, 0, stream_of(stream)>>>(args);
  }
  return launch_status();
}

CudaStatus swiglu(const SwiGluArgs& args, Type type, void* stream) {
  const dim3 grid(static_cast<unsigned>((args.f + kThreads - 1) / kThreads),
                  static_cast<unsigned>(args.t));
  if (type == Type::kBF16) {
    swiglu_kernel<__nv_bfloat16><<<grid, kThreads, 0, stream_of(stream)>>>(args);
  } else {
    swiglu_kernel<float><<<grid, kThreads, 0, stream_of(stream)>>>(args);
  }
  return launch_status();
}

CudaStatus argmax(const ArgmaxArgs& args, void* stream) {
  argmax_kernel<<<static_cast<unsigned>(args.rows), 1024, 0, stream_of(stream)>>>(args);
  return launch_status();
}

}  // namespace longspur::kernels::elementwise::cuda
