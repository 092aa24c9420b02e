// RoPE, per-head norms and the cache append; and the copy of a sequence's pages to contiguous rows.
// Both move each element once.
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include "kernels/attention/cuda/page_address.cuh"
#include "kernels/attention/cuda/paged_cuda.h"
#include "kernels/common/cuda/launch.cuh"
#include "kernels/common/cuda/status.cuh"

namespace longspur::kernels::attention::cuda {

namespace {

constexpr int kThreads = 128;

// One warp a head row of one token. Lane l holds elements l, l + 32, ... of the row (D <= 256).
template <class T>
__global__ void rope_append_kernel(RopeAppendArgs args, TokenMap map, PagedCache cache) {
  let_next_start();
  wait_for_previous();
  constexpr int kSlots = 8;
  const int64_t d = cache.head_dim, kv_heads = cache.kv_heads;
  const int64_t rows = args.heads + 2 * kv_heads;
  const int64_t row = int64_t(blockIdx.y) * (kThreads / kWarp) + threadIdx.x / kWarp;
  if (row >= rows) return;
  const int lane = int(threadIdx.x) % kWarp;
  const int64_t t = blockIdx.x;
  T* data = static_cast<T*>(args.qkv) + (t * rows + row) * d;
  const bool is_q = row < args.heads, is_v = row >= args.heads + kv_heads;
  const int64_t position = map.position[t];

  float x[kSlots];
  float squares = 0.0f;
#pragma unroll
  for (int i = 0; i < kSlots; ++i) {
    const int64_t at = lane + int64_t(i) * kWarp;
    x[i] = at < d ? to_float(data[at]) : 0.0f;
    squares += x[i] * x[i];
  }
  const float* norm = is_q ? args.q_norm : args.k_norm;
  const bool normed = !is_v && norm != nullptr;
  const float scale = normed ? rsqrtf(warp_sum(squares) / float(d) + args.norm_eps) : 1.0f;

  // The partner of an element is half of rotary_dim away, in another lane's slot: through shared.
  __shared__ float exchange[kThreads / kWarp][256];
  float* own = exchange[threadIdx.x / kWarp];
#pragma unroll
  for (int i = 0; i < kSlots; ++i) {
    const int64_t at = lane + int64_t(i) * kWarp;
    if (at < d) own[at] = normed ? x[i] * scale * norm[at] : x[i];
  }
  __syncwarp();
  const int64_t half = args.rotary_dim / 2;
  const int64_t angle =
      position + (args.table_start != nullptr ? args.table_start[map.sequence[t]] : 0);
  T* target = data;
  if (!is_q) {
    const int64_t head = is_v ? row - args.heads - kv_heads : row - args.heads;
    target = key_address<T>(cache, map.sequence[t], head, position) + (is_v ? kPageTokens * d : 0);
  }
#pragma unroll
  for (int i = 0; i < kSlots; ++i) {
    const int64_t at = lane + int64_t(i) * kWarp;
    if (at >= d) continue;
    float value = own[at];
    if (!is_v && at < args.rotary_dim) {
      const int64_t pair = at < half ? at : at - half;
      const float c = args.cos[angle * half + pair], s = args.sin[angle * half + pair];
      value = at < half ? value * c - own[at + half] * s : value * c + own[at - half] * s;
    }
    target[at] = from_float<T>(value);
  }
}

template <class T>
__global__ void gather_kernel(GatherArgs args, PagedCache cache) {
  const int64_t token = blockIdx.x, head = blockIdx.y, d = cache.head_dim;
  const T* key = key_address<T>(cache, args.sequence, head, token);
  T* k = static_cast<T*>(args.k) + (token * cache.kv_heads + head) * d;
  T* v = static_cast<T*>(args.v) + (token * cache.kv_heads + head) * d;
  for (int64_t i = threadIdx.x; i < d; i += blockDim.x) {
    k[i] = key[i];
    v[i] = key[kPageTokens * d + i];
  }
}

}  // namespace

CudaStatus rope_append(const RopeAppendArgs& args,
                       const TokenMap& map,
                       const PagedCache& cache,
                       void* stream) {
  const int64_t rows = args.heads + 2 * cache.kv_heads;
  const int64_t rows_a_block = kThreads / kWarp;
  const dim3 grid(static_cast<unsigned>(map.t),
                  static_cast<unsigned>((rows + rows_a_block - 1) / rows_a_block));
  const auto s = static_cast<cudaStream_t>(stream);
  if (cache.type == Type::kBF16)
    launch_overlapped(rope_append_kernel<__nv_bfloat16>, grid, dim3(kThreads), s, args, map, cache);
  else
    launch_overlapped(rope_append_kernel<float>, grid, dim3(kThreads), s, args, map, cache);
  return launch_status();
}

CudaStatus gather_kv(const GatherArgs& args, const PagedCache& cache, void* stream) {
  const dim3 grid(static_cast<unsigned>(args.tokens), static_cast<unsigned>(cache.kv_heads));
  const auto s = static_cast<cudaStream_t>(stream);
  const int threads = cache.head_dim <= 64 ? 64 : 128;
  if (cache.type == Type::kBF16)
    gather_kernel<__nv_bfloat16><<<grid, threads, 0, s>>>(args, cache);
  else
    gather_kernel<float><<<grid, threads, 0, s>>>(args, cache);
  return launch_status();
}

}  // namespace longspur::kernels::attention::cuda
