// Matrix-vector product, bf16 weights. Floor: N * K * 2 bytes over the memory bandwidth.
//
// A warp owns kRows rows of W and streams them with 16-byte loads, 32 lanes side by side; kRows * 2
// independent loads in flight per lane cover the latency. x stays in L1 (8 KB a token at K = 4096).
// Sums are fp32; the order of additions is fixed, so results do not change from run to run.
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include "kernels/common/cuda/launch.cuh"
#include "kernels/common/cuda/status.cuh"
#include "kernels/qgemm/cuda/gemv_cuda.h"

namespace longspur::kernels::qgemm::cuda {

namespace {

using bf16 = __nv_bfloat16;
constexpr int kVec = Vec<bf16>::kSize;  // 8 elements a load
constexpr int kWarps = 4;

// Streaming load: W is read once and must not push x and the cache pages out of L2.
__device__ uint4 load_streaming(const bf16* address) {
  return __ldcs(reinterpret_cast<const uint4*>(address));
}

__device__ float dot8(const uint4& a, const uint4& b, float sum) {
  const auto* x = reinterpret_cast<const __nv_bfloat162*>(&a);
  const auto* y = reinterpret_cast<const __nv_bfloat162*>(&b);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 u = __bfloat1622float2(x[i]), v = __bfloat1622float2(y[i]);
    sum = fmaf(u.x, v.x, sum);
    sum = fmaf(u.y, v.y, sum);
  }
  return sum;
}

template <int kTokens, int kRows>
__global__ void __launch_bounds__(kWarps* kWarp) gemv_kernel(GemvArgs args) {
  const int lane = int(threadIdx.x) % kWarp;
  const int64_t warp = int64_t(blockIdx.x) * kWarps + threadIdx.x / kWarp;
  const int64_t row0 = warp * kRows;
  if (row0 >= args.n) return;
  const bf16* x = static_cast<const bf16*>(args.x);
  const bf16* w = static_cast<const bf16*>(args.w);
  const bf16* rows[kRows];
#pragma unroll
  for (int r = 0; r < kRows; ++r) rows[r] = w + min(row0 + r, args.n - 1) * args.k;

  float sum[kRows][kTokens] = {};
  constexpr int64_t kStep = int64_t(kWarp) * kVec;
  constexpr int kUnroll = kRows == 1 ? 8 : 2;
#pragma unroll kUnroll
  for (int64_t i = int64_t(lane) * kVec; i < args.k; i += kStep) {
    uint4 weights[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) weights[r] = load_streaming(rows[r] + i);
#pragma unroll
    for (int t = 0; t < kTokens; ++t) {
      const uint4 values = __ldg(reinterpret_cast<const uint4*>(x + t * args.k + i));
#pragma unroll
      for (int r = 0; r < kRows; ++r) sum[r][t] = dot8(weights[r], values, sum[r][t]);
    }
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    if (row0 + r >= args.n) return;
#pragma unroll
    for (int t = 0; t < kTokens; ++t) {
      float y = warp_sum(sum[r][t]);
      if (lane != 0) continue;
      if (args.bias != nullptr) y += args.bias[row0 + r];
      const int64_t at = t * args.n + row0 + r;
      if (args.y_fp32)
        static_cast<float*>(args.y)[at] = y;
      else
        static_cast<bf16*>(args.y)[at] = __float2bfloat16_rn(y);
    }
  }
}

// Rows a warp: four share the reading of x and keep enough loads in flight; but a matrix of few
// rows needs its warps spread over the whole chip first (4,096 rows at four a warp fill 8 warps of
// a multiprocessor's 64), and many tokens need the registers for sums.
constexpr int64_t kManyRows = 16384;

template <int kTokens, int kRows>
void launch_rows(const GemvArgs& args, cudaStream_t stream) {
  const int64_t rows_a_block = int64_t(kWarps) * kRows;
  const auto blocks = static_cast<unsigned>((args.n + rows_a_block - 1) / rows_a_block);
  gemv_kernel<kTokens, kRows><<<blocks, kWarps * kWarp, 0, stream>>>(args);
}

template <int kTokens>
void launch(const GemvArgs& args, cudaStream_t stream) {
  if (args.n < kManyRows)
    launch_rows<kTokens, 1>(args, stream);
  else
    launch_rows<kTokens, kTokens <= 2 ? 4 : 2>(args, stream);
}

}  // namespace

bool gemv_accepts(int64_t t, int64_t k) { return t >= 1 && t <= kGemvTokens && k % kVec == 0; }

CudaStatus gemv(const GemvArgs& args, void* stream) {
  const auto s = static_cast<cudaStream_t>(stream);
  switch (args.t) {
    case 1:
      launch<1>(args, s);
      break;
    case 2:
      launch<2>(args, s);
      break;
    case 3:
      launch<3>(args, s);
      break;
    case 4:
      launch<4>(args, s);
      break;
    case 5:
      launch<5>(args, s);
      break;
    case 6:
      launch<6>(args, s);
      break;
    case 7:
      launch<7>(args, s);
      break;
    case 8:
      launch<8>(args, s);
      break;
    default:
      return "gemv: more than 8 tokens";
  }
  return launch_status();
}

}  // namespace longspur::kernels::qgemm::cuda
