// The reference on the device: a warp an output, fp32 sums, canonical weights. Also the decoder of
// NVFP4 activations.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>

#include "kernels/common/cuda/launch.cuh"
#include "kernels/common/cuda/status.cuh"
#include "kernels/nvfp4/codec.h"
#include "kernels/nvfp4/cuda/matmul_impl.h"
#include "kernels/nvfp4/cuda/store.cuh"

namespace longspur::kernels::nvfp4::cuda {

namespace {

constexpr int kWarps = 8;

__device__ float input(const void* x, Type type, int64_t at) {
  if (type == Type::kF32) return static_cast<const float*>(x)[at];
  if (type == Type::kBF16) return __bfloat162float(static_cast<const __nv_bfloat16*>(x)[at]);
  return __half2float(static_cast<const __half*>(x)[at]);
}

__device__ float element(
    const uint8_t* codes, const uint8_t* scales, int64_t k, int64_t row, int64_t i) {
  const uint32_t byte = codes[row * (k / 2) + i / 2];
  const float scale = e4m3_decode(scales[row * (k / kBlock) + i / kBlock] & 0x7fu);
  return e2m1_decode(byte >> (i % 2 * 4) & 15u) * scale;
}

__global__ void __launch_bounds__(kWarps* kWarp)
    simple_kernel(Weights w, const void* x, Type x_type, int64_t outputs, Finish finish) {
  wait_for_previous();
  const int lane = int(threadIdx.x) % kWarp;
  const int64_t output = int64_t(blockIdx.x) * kWarps + threadIdx.x / kWarp;
  if (output >= outputs) return;
  const int64_t token = output / w.n, row = output % w.n;
  float sum = 0;
  for (int64_t i = lane; i < w.k; i += kWarp)
    sum = fmaf(input(x, x_type, token * w.k + i), element(w.codes, w.scales, w.k, row, i), sum);
  sum = warp_sum(sum);
  if (lane == 0) finish.store(token, row, sum);
}

__global__ void decode_kernel(const uint8_t* codes,
                              const uint8_t* scales,
                              int64_t bytes,
                              __nv_bfloat162* out) {
  let_next_start();
  wait_for_previous();
  // A thread eight bytes: one block of sixteen.
  const int64_t block = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (block * 8 >= bytes) return;
  const float scale = e4m3_decode(scales[block] & 0x7fu);
  const uint2 word = *reinterpret_cast<const uint2*>(codes + block * 8);
  alignas(16) __nv_bfloat162 values[8];
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const uint32_t pair = (i < 4 ? word.x : word.y) >> (i % 4 * 8);
    values[i] = __floats2bfloat162_rn(e2m1_decode(pair & 15u) * scale,
                                      e2m1_decode(pair >> 4 & 15u) * scale);
  }
  auto* to = reinterpret_cast<uint4*>(out + block * 8);
  to[0] = reinterpret_cast<const uint4*>(values)[0];
  to[1] = reinterpret_cast<const uint4*>(values)[1];
}

bool accepts(const MatmulArgs& args) { return args.w.codes != nullptr; }

CudaStatus run(const MatmulArgs& args, void* stream) {
  const int64_t outputs = args.m * args.w.n;
  const int64_t blocks = (outputs + kWarps - 1) / kWarps;
  if (blocks > INT32_MAX) return "nvfp4 matmul: more than 2^34 results in one product";
  launch_overlapped(simple_kernel, dim3(unsigned(blocks)), dim3(kWarps * kWarp),
                    static_cast<cudaStream_t>(stream), args.w, args.x, args.x_type, outputs,
                    make_finish(args, 1.0f));
  return launch_status();
}

}  // namespace

const Implementation kSimple{"simple", accepts, run};

CudaStatus decode_rows(
    const uint8_t* codes, const uint8_t* scales, int64_t rows, int64_t k, void* out, void* stream) {
  constexpr int64_t kThreads = 256;
  const int64_t blocks = rows * k / kBlock;
  launch_overlapped(decode_kernel, dim3(unsigned((blocks + kThreads - 1) / kThreads)),
                    dim3(unsigned(kThreads)), static_cast<cudaStream_t>(stream), codes, scales,
                    rows * k / 2, static_cast<__nv_bfloat162*>(out));
  return launch_status();
}

}  // namespace longspur::kernels::nvfp4::cuda
