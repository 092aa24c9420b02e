// What every CUDA family shares: 16-byte vectors, warp and block reductions, and launches that
// overlap with the end of the kernel before.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>

namespace longspur::kernels {

inline constexpr int kWarp = 32;

// 16 bytes of T, the widest load a thread can make.
template <class T>
struct alignas(16) Vec {
  static constexpr int kSize = 16 / int(sizeof(T));
  T data[kSize];
};

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
template <class T>
__device__ inline T from_float(float x);
template <>
__device__ inline float from_float<float>(float x) {
  return x;
}
template <>
__device__ inline __nv_bfloat16 from_float<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}

__device__ inline float warp_sum(float x) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(~0u, x, offset);
  return x;
}

__device__ inline float warp_max(float x) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2)
    x = fmaxf(x, __shfl_xor_sync(~0u, x, offset));
  return x;
}

// Sum over a block of at most 1,024 threads; every thread gets it. `scratch`: 33 floats of shared
// memory that no other reduction of the same kernel may still be reading.
__device__ inline float block_sum(float x, float* scratch) {
  const int warp = int(threadIdx.x) / kWarp, lane = int(threadIdx.x) % kWarp;
  const int warps = (int(blockDim.x) + kWarp - 1) / kWarp;
  x = warp_sum(x);
  if (lane == 0) scratch[warp] = x;
  __syncthreads();
  if (warp == 0) {
    x = warp_sum(lane < warps ? scratch[lane] : 0.0f);
    if (lane == 0) scratch[kWarp] = x;
  }
  __syncthreads();
  return scratch[kWarp];
}

// The largest over a block, likewise.
__device__ inline float block_max(float x, float* scratch) {
  const int warp = int(threadIdx.x) / kWarp, lane = int(threadIdx.x) % kWarp;
  const int warps = (int(blockDim.x) + kWarp - 1) / kWarp;
  x = warp_max(x);
  if (lane == 0) scratch[warp] = x;
  __syncthreads();
  x = scratch[0];
  for (int i = 1; i < warps; ++i) x = fmaxf(x, scratch[i]);
  __syncthreads();
  return x;
}

// Overlapped launches. A kernel started by launch_overlapped() may begin while its predecessor in
// the stream still runs: it may load what no kernel of the stream writes (weights), and must call
// wait_for_previous() in every thread before it touches anything else, for writing too. The call
// returns when the predecessor is complete, and with it all before. let_next_start() lets the
// successor be launched once every block of this kernel has called it or ended.
__device__ inline void wait_for_previous() { cudaGridDependencySynchronize(); }
__device__ inline void let_next_start() { cudaTriggerProgrammaticLaunchCompletion(); }

template <class... Parameters, class... Arguments>
void launch_overlapped(void (*kernel)(Parameters...),
                       dim3 grid,
                       dim3 block,
                       cudaStream_t stream,
                       const Arguments&... arguments) {
  cudaLaunchAttribute overlap{};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.stream = stream;
  config.attrs = &overlap;
  config.numAttrs = 1;
  cudaLaunchKernelEx(&config, kernel, arguments...);  // errors: launch_status()
}

}  // namespace longspur::kernels
