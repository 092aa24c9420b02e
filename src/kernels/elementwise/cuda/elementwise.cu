// Memory-bound kernels: one block a row, fp32 arithmetic. Bytes moved are the floor: each input
// read once, each output written once.
#include <cuda_bf16.h>
#include <cuda_runtime.h>

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

// A thread holds kItems elements of its block's row in registers, blockDim.x apart.
template <class T, int kItems>
__global__ void add_rms_norm_kernel(AddNormArgs args) {
  let_next_start();
  __shared__ float scratch[kWarp + 1];
  const auto column = [](int i) { return int64_t(threadIdx.x) + int64_t(i) * blockDim.x; };
  float weight[kItems], x[kItems];
#pragma unroll
  for (int i = 0; i < kItems; ++i) weight[i] = column(i) < args.c ? args.weight[column(i)] : 0.0f;
  wait_for_previous();
  float* hidden = args.hidden + int64_t(blockIdx.x) * args.c;
  const T* delta = static_cast<const T*>(args.delta);
  if (delta != nullptr) delta += int64_t(blockIdx.x) * args.c;
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < kItems; ++i) {
    x[i] = column(i) < args.c ? hidden[column(i)] : 0.0f;
    if (delta != nullptr && column(i) < args.c) x[i] += to_float(delta[column(i)]);
    sum += x[i] * x[i];
  }
  if (delta != nullptr) {
#pragma unroll
    for (int i = 0; i < kItems; ++i)
      if (column(i) < args.c) hidden[column(i)] = x[i];
  }
  if (args.y == nullptr) return;
  const float scale = rsqrtf(block_sum(sum, scratch) / float(args.c) + args.eps);
  T* y = static_cast<T*>(args.y) + int64_t(blockIdx.x) * args.c;
#pragma unroll
  for (int i = 0; i < kItems; ++i)
    if (column(i) < args.c) y[column(i)] = from_float<T>(x[i] * scale * weight[i]);
}

template <class T>
void launch_add_rms_norm(const AddNormArgs& args, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(args.t));
  if (args.c <= 4 * kThreads)
    launch_overlapped(add_rms_norm_kernel<T, 4>, grid, dim3(kThreads), stream, args);
  else if (args.c <= 4096)
    launch_overlapped(add_rms_norm_kernel<T, 4>, grid, dim3(1024), stream, args);
  else
    launch_overlapped(add_rms_norm_kernel<T, 16>, grid, dim3(1024), stream, args);
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

template <class T>
__global__ void pick_rows_kernel(PickRowsArgs args) {
  const T* x = static_cast<const T*>(args.x) + int64_t(args.rows[blockIdx.x]) * args.width;
  T* y = static_cast<T*>(args.y) + int64_t(blockIdx.x) * args.width;
  for (int64_t i = threadIdx.x; i < args.width; i += blockDim.x) y[i] = x[i];
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
  if (args.c > kMaxNormWidth) return "add_rms_norm: rows above 16384";
  if (type == Type::kBF16)
    launch_add_rms_norm<__nv_bfloat16>(args, stream_of(stream));
  else
    launch_add_rms_norm<float>(args, stream_of(stream));
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

CudaStatus pick_rows(const PickRowsArgs& args, Type type, void* stream) {
  const dim3 grid(static_cast<unsigned>(args.r));
  if (type == Type::kBF16)
    pick_rows_kernel<__nv_bfloat16><<<grid, kThreads, 0, stream_of(stream)>>>(args);
  else
    pick_rows_kernel<float><<<grid, kThreads, 0, stream_of(stream)>>>(args);
  return launch_status();
}

}  // namespace longspur::kernels::elementwise::cuda
