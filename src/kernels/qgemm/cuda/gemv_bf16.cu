// Matrix-vector product, bf16 weights. Floor: N * K * 2 bytes over the memory bandwidth.
//
// A warp owns kRows rows of W and streams them with 16-byte loads, 32 lanes side by side; eight
// independent loads in flight per lane cover the latency. The first eight are issued before the
// kernel waits for the one that makes x, so the memory is busy while small kernels run. x stays in
// L1 (8 KB a token at K = 4096). Sums are fp32; the order of additions is fixed, so results do not
// change from run to run.
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

// x was written by the kernel before: no path that may have cached it earlier.
__device__ uint4 load_input(const bf16* address) {
  return *reinterpret_cast<const uint4*>(address);
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

// The kRows rows of W that a warp multiplies: neighbours, or pairs of a gate row and its up row.
template <int kRows, bool kSwiGlu>
__device__ void find_rows(const GemvArgs& args, int64_t first, const bf16* (&rows)[kRows]) {
  const bf16* w = static_cast<const bf16*>(args.w);
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const int64_t row = kSwiGlu ? first + r / 2 + (r % 2) * args.n : min(first + r, args.n - 1);
    rows[r] = w + row * args.k;
  }
}

template <int kTokens, int kRows, bool kSwiGlu>
__device__ void store(const GemvArgs& args, int64_t first, float (&sum)[kRows][kTokens]) {
  constexpr int kStep = kSwiGlu ? 2 : 1;
#pragma unroll
  for (int r = 0; r < kRows; r += kStep) {
    const int64_t row = first + r / kStep;
    if (row >= args.n) return;
    const float bias = args.bias != nullptr ? args.bias[row] : 0.0f;
    const float up_bias = kSwiGlu && args.bias != nullptr ? args.bias[row + args.n] : 0.0f;
#pragma unroll
    for (int t = 0; t < kTokens; ++t) {
      float y = sum[r][t] + bias;
      if constexpr (kSwiGlu) y = y / (1.0f + __expf(-y)) * (sum[r + 1][t] + up_bias);
      const int64_t at = t * args.n + row;
      if (args.result == GemvResult::kF32)
        static_cast<float*>(args.y)[at] = y;
      else
        static_cast<bf16*>(args.y)[at] = __float2bfloat16_rn(y);
    }
  }
}

template <int kTokens, int kRows, bool kSwiGlu>
__global__ void __launch_bounds__(kWarps* kWarp) gemv_kernel(GemvArgs args) {
  let_next_start();
  constexpr int kOutputs = kSwiGlu ? kRows / 2 : kRows;
  const int lane = int(threadIdx.x) % kWarp;
  const int64_t first = (int64_t(blockIdx.x) * kWarps + threadIdx.x / kWarp) * kOutputs;
  if (first >= args.n) return;
  const bf16* rows[kRows];
  find_rows<kRows, kSwiGlu>(args, first, rows);

  constexpr int kUnroll = 8 / kRows;  // eight loads in flight a lane
  constexpr int64_t kStep = int64_t(kWarp) * kVec;
  uint4 weights[kUnroll][kRows];
  const auto load = [&](int64_t begin) {  // past the end, the last ones again: no branch
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int64_t i = min(begin + u * kStep, args.k - kVec);
#pragma unroll
      for (int r = 0; r < kRows; ++r) weights[u][r] = load_streaming(rows[r] + i);
    }
  };
  load(int64_t(lane) * kVec);
  wait_for_previous();

  const bf16* x = static_cast<const bf16*>(args.x);
  float sum[kRows][kTokens] = {};
  for (int64_t begin = int64_t(lane) * kVec; begin < args.k; begin += kUnroll * kStep) {
    if (begin >= kStep) load(begin);
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int64_t i = begin + u * kStep;
      if (i >= args.k) break;
#pragma unroll
      for (int t = 0; t < kTokens; ++t) {
        const uint4 values = load_input(x + t * args.k + i);
#pragma unroll
        for (int r = 0; r < kRows; ++r) sum[r][t] = dot8(weights[u][r], values, sum[r][t]);
      }
    }
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
#pragma unroll
    for (int t = 0; t < kTokens; ++t) sum[r][t] = warp_sum(sum[r][t]);
  }
  if (lane == 0) store<kTokens, kRows, kSwiGlu>(args, first, sum);
}

// Rows a warp: four share the reading of x and keep enough loads in flight; but a matrix of few
// rows needs its warps spread over the whole chip first (4,096 rows at four a warp fill 8 warps of
// a multiprocessor's 64). From three tokens on two rows are best: with one, x is read from L1 as
// often as there are tokens for each weight, with four, the sums take the registers.
constexpr int64_t kManyRows = 16384;

template <int kTokens, int kRows, bool kSwiGlu>
void launch_rows(const GemvArgs& args, cudaStream_t stream) {
  const int64_t outputs = int64_t(kWarps) * (kSwiGlu ? kRows / 2 : kRows);
  const auto blocks = static_cast<unsigned>((args.n + outputs - 1) / outputs);
  launch_overlapped(gemv_kernel<kTokens, kRows, kSwiGlu>, dim3(blocks), dim3(kWarps * kWarp),
                    stream, args);
}

template <int kTokens>
void launch(const GemvArgs& args, cudaStream_t stream) {
  if (args.result == GemvResult::kSwiGlu)
    launch_rows<kTokens, 2, true>(args, stream);
  else if (kTokens <= 2)
    args.n < kManyRows ? launch_rows<kTokens, 1, false>(args, stream)
                       : launch_rows<kTokens, 4, false>(args, stream);
  else
    launch_rows<kTokens, 2, false>(args, stream);
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
