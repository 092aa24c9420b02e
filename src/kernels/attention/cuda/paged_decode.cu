// Decode attention over pages. Floor: the bytes of K and V of the visible keys, once for each KV
// head.
//
// A block takes one token, one KV head (up to kHeads of its query heads) and kSplitTokens keys.
// Lanes of a group of kLanes hold 8 elements of D each, so a group reads one key row with 16-byte
// loads; every group keeps its own running softmax (m, l, o) of each head, and the groups of the
// block, then the splits of the token, are merged by log-sum-exp.
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cmath>

#include "kernels/attention/cuda/page_address.cuh"
#include "kernels/attention/cuda/paged_cuda.h"
#include "kernels/common/cuda/launch.cuh"
#include "kernels/common/cuda/status.cuh"

namespace longspur::kernels::attention::cuda {

namespace {

constexpr int kThreads = 128;
constexpr int kElements = 8;  // of D, a lane
constexpr int kHeads = 4;     // query heads a block

template <class T>
__device__ void load8(const T* from, float (&to)[kElements]) {
  constexpr int kLoads = kElements / Vec<T>::kSize;
#pragma unroll
  for (int l = 0; l < kLoads; ++l) {
    const Vec<T> vec = reinterpret_cast<const Vec<T>*>(from)[l];
#pragma unroll
    for (int i = 0; i < Vec<T>::kSize; ++i) to[l * Vec<T>::kSize + i] = to_float(vec.data[i]);
  }
}

struct SoftmaxState {
  float m = -INFINITY, l = 0.0f;
  float o[kElements] = {};
};

__device__ void update(SoftmaxState& state, float score, const float (&value)[kElements]) {
  const float m = fmaxf(state.m, score);
  const float keep = __expf(state.m - m), p = __expf(score - m);
  state.l = state.l * keep + p;
#pragma unroll
  for (int i = 0; i < kElements; ++i) state.o[i] = state.o[i] * keep + p * value[i];
  state.m = m;
}

template <int kLanes>
__device__ float group_sum(float x) {
#pragma unroll
  for (int offset = kLanes / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(~0u, x, offset);
  return x;
}

template <class T, int kLanes>
__global__ void __launch_bounds__(kThreads)
    decode_kernel(DecodeArgs args, TokenMap map, PagedCache cache) {
  constexpr int kGroups = kThreads / kLanes;
  const int64_t d = cache.head_dim, heads_a_group = args.heads / cache.kv_heads;
  const int64_t chunks = (heads_a_group + kHeads - 1) / kHeads;
  const int64_t t = blockIdx.x, kv_head = blockIdx.y / chunks, chunk = blockIdx.y % chunks;
  const int64_t split = blockIdx.z, splits = gridDim.z;
  const int64_t head0 = kv_head * heads_a_group + chunk * kHeads;
  const int heads = int(min(int64_t(kHeads), heads_a_group - chunk * kHeads));
  const int group = int(threadIdx.x) / kLanes, lane = int(threadIdx.x) % kLanes;
  const bool active = lane * kElements < d;

  const int64_t visible = map.position[t] + 1;
  const int64_t first =
      max(split * kSplitTokens, args.window > 0 ? visible - args.window : int64_t(0));
  const int64_t end = min((split + 1) * kSplitTokens, visible);

  float q[kHeads][kElements];
#pragma unroll
  for (int h = 0; h < kHeads; ++h) {
#pragma unroll
    for (int i = 0; i < kElements; ++i) q[h][i] = 0.0f;
    if (active && h < heads) {
      load8(static_cast<const T*>(args.q) + t * args.ldq + (head0 + h) * d + lane * kElements,
            q[h]);
    }
  }
  SoftmaxState state[kHeads];
  // All lanes of a warp make the same number of turns: the sums are shuffles over the whole warp.
  const int64_t turns = first < end ? (end - first + kGroups - 1) / kGroups : 0;
  for (int64_t turn = 0; turn < turns; ++turn) {
    const int64_t s = first + turn * kGroups + group;
    float key[kElements] = {}, value[kElements] = {};
    if (active && s < end) {
      const T* row = key_address<T>(cache, map.sequence[t], kv_head, s) + lane * kElements;
      load8(row, key);
      load8(row + kPageTokens * d, value);
    }
#pragma unroll
    for (int h = 0; h < kHeads; ++h) {
      float score = 0.0f;
#pragma unroll
      for (int i = 0; i < kElements; ++i) score = fmaf(q[h][i], key[i], score);
      score = group_sum<kLanes>(score) * args.scale;
      if (s < end) update(state[h], score, value);
    }
  }

  // Merge the block's groups, head by head.
  __shared__ float shared_o[kGroups][kLanes * kElements];
  __shared__ float shared_m[kGroups], shared_l[kGroups];
#pragma unroll
  for (int h = 0; h < kHeads; ++h) {
    if (h >= heads) break;  // uniform over the block
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kElements; ++i) shared_o[group][lane * kElements + i] = state[h].o[i];
    if (lane == 0) {
      shared_m[group] = state[h].m;
      shared_l[group] = state[h].l;
    }
    __syncthreads();
    float m = -INFINITY;
    for (int g = 0; g < kGroups; ++g) m = fmaxf(m, shared_m[g]);
    float* partial = args.partial + ((t * args.heads + head0 + h) * splits + split) * (d + 2);
    for (int64_t i = threadIdx.x; i < d; i += kThreads) {
      float o = 0.0f;
      for (int g = 0; g < kGroups; ++g) {
        if (shared_l[g] > 0.0f) o += shared_o[g][i] * __expf(shared_m[g] - m);
      }
      partial[i] = o;
    }
    if (threadIdx.x == 0) {
      float l = 0.0f;
      for (int g = 0; g < kGroups; ++g) {
        if (shared_l[g] > 0.0f) l += shared_l[g] * __expf(shared_m[g] - m);
      }
      partial[d] = m;
      partial[d + 1] = l;
    }
  }
}

template <class T>
__global__ void merge_kernel(DecodeArgs args, int64_t splits, int64_t d) {
  const int64_t t = blockIdx.x, head = blockIdx.y;
  const float* partial = args.partial + (t * args.heads + head) * splits * (d + 2);
  float m = -INFINITY;
  for (int64_t s = 0; s < splits; ++s) m = fmaxf(m, partial[s * (d + 2) + d]);
  float l = 0.0f;
  for (int64_t s = 0; s < splits; ++s) {
    const float split_l = partial[s * (d + 2) + d + 1];
    if (split_l > 0.0f) l += split_l * __expf(partial[s * (d + 2) + d] - m);
  }
  T* out = static_cast<T*>(args.out) + (t * args.heads + head) * d;
  for (int64_t i = threadIdx.x; i < d; i += blockDim.x) {
    float o = 0.0f;
    for (int64_t s = 0; s < splits; ++s) {
      if (partial[s * (d + 2) + d + 1] > 0.0f) {
        o += partial[s * (d + 2) + i] * __expf(partial[s * (d + 2) + d] - m);
      }
    }
    out[i] = from_float<T>(l > 0.0f ? o / l : 0.0f);
  }
}

int64_t splits_of(int64_t max_kv_len) { return (max_kv_len + kSplitTokens - 1) / kSplitTokens; }

template <class T>
void launch(const DecodeArgs& args,
            const TokenMap& map,
            const PagedCache& cache,
            cudaStream_t stream) {
  const int64_t splits = splits_of(args.max_kv_len);
  const int64_t chunks = (args.heads / cache.kv_heads + kHeads - 1) / kHeads;
  const dim3 grid(static_cast<unsigned>(map.t), static_cast<unsigned>(cache.kv_heads * chunks),
                  static_cast<unsigned>(splits));
  if (cache.head_dim <= 64)
    decode_kernel<T, 8><<<grid, kThreads, 0, stream>>>(args, map, cache);
  else if (cache.head_dim <= 128)
    decode_kernel<T, 16><<<grid, kThreads, 0, stream>>>(args, map, cache);
  else
    decode_kernel<T, 32><<<grid, kThreads, 0, stream>>>(args, map, cache);
  const dim3 merge_grid(static_cast<unsigned>(map.t), static_cast<unsigned>(args.heads));
  merge_kernel<T><<<merge_grid, 64, 0, stream>>>(args, splits, cache.head_dim);
}

}  // namespace

int64_t decode_scratch_bytes(int64_t t, int64_t heads, int64_t head_dim, int64_t max_kv_len) {
  return t * heads * splits_of(max_kv_len) * (head_dim + 2) * int64_t(sizeof(float));
}

CudaStatus paged_decode(const DecodeArgs& args,
                        const TokenMap& map,
                        const PagedCache& cache,
                        void* stream) {
  if (cache.head_dim % kElements != 0 || cache.head_dim > 256)
    return "head size: not a multiple of 8 up to 256";
  const auto s = static_cast<cudaStream_t>(stream);
  if (cache.type == Type::kBF16)
    launch<__nv_bfloat16>(args, map, cache, s);
  else
    launch<float>(args, map, cache, s);
  return launch_status();
}

}  // namespace longspur::kernels::attention::cuda
