// Decode attention over pages. Floor: the bytes of K and V of the visible keys, once for each KV
// head.
//
// A block takes one token, one KV head (up to kHeads of its query heads) and kSplitTokens keys, and
// looks their pages up first. Lanes of a group of kLanes hold 8 elements of D each, so a group
// reads one key row with 16-byte loads, and loads kTurns rows before it uses the first. Every group
// keeps its own running softmax (m, l, o) of each head; the groups of a warp, the warps of the
// block, then the splits of the token are merged by log-sum-exp.
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cmath>

#include "kernels/attention/cuda/paged_cuda.h"
#include "kernels/common/cuda/launch.cuh"
#include "kernels/common/cuda/status.cuh"

namespace longspur::kernels::attention::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int kBlocksAMultiprocessor = 2;  // at least: caps the registers
constexpr int kWarps = kThreads / kWarp;
constexpr int kElements = 8;  // of D, a lane
constexpr int kHeads = 4;     // query heads a block
constexpr int kPages = kSplitTokens / kPageTokens;

// A lane's elements of a row, as loaded.
template <class T>
struct Raw {
  static constexpr int kLoads = kElements / Vec<T>::kSize;
  Vec<T> parts[kLoads];
  __device__ void load(const T* from) {
#pragma unroll
    for (int i = 0; i < kLoads; ++i) parts[i] = reinterpret_cast<const Vec<T>*>(from)[i];
  }
  __device__ void clear() {
#pragma unroll
    for (int i = 0; i < kElements; ++i)
      parts[i / Vec<T>::kSize].data[i % Vec<T>::kSize] = from_float<T>(0.0f);
  }
  __device__ float operator[](int i) const {
    return to_float(parts[i / Vec<T>::kSize].data[i % Vec<T>::kSize]);
  }
};

struct SoftmaxState {
  float m = -INFINITY, l = 0.0f;
  float o[kElements] = {};
};

template <class T>
__device__ void update(SoftmaxState& state, float score, const Raw<T>& value) {
  const float m = fmaxf(state.m, score);
  const float keep = __expf(state.m - m), p = __expf(score - m);
  state.l = state.l * keep + p;
#pragma unroll
  for (int i = 0; i < kElements; ++i) state.o[i] = state.o[i] * keep + p * value[i];
  state.m = m;
}

// What the sum of a state is multiplied by when its maximum becomes m; a state that saw nothing has
// none.
__device__ float rescale(float own_m, float own_l, float m) {
  return own_l > 0.0f ? __expf(own_m - m) : 0.0f;
}

// Merges the states of the warp's groups; every group gets the result.
template <int kLanes>
__device__ void merge_groups(SoftmaxState& state) {
#pragma unroll
  for (int offset = kLanes; offset < kWarp; offset *= 2) {
    const float other_m = __shfl_xor_sync(~0u, state.m, offset);
    const float other_l = __shfl_xor_sync(~0u, state.l, offset);
    const float m = fmaxf(state.m, other_m);
    const float own = rescale(state.m, state.l, m), other = rescale(other_m, other_l, m);
    state.m = m;
    state.l = state.l * own + other_l * other;
#pragma unroll
    for (int i = 0; i < kElements; ++i)
      state.o[i] = state.o[i] * own + __shfl_xor_sync(~0u, state.o[i], offset) * other;
  }
}

template <int kLanes>
__device__ float group_sum(float x) {
#pragma unroll
  for (int offset = kLanes / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(~0u, x, offset);
  return x;
}

// The keys that a block works on.
struct Work {
  int64_t t, kv_head, head0, split, first, end;
  int heads;
};

__device__ Work find_work(const DecodeArgs& args, const TokenMap& map, const PagedCache& cache) {
  Work work;
  const int64_t heads_a_group = args.heads / cache.kv_heads;
  const int64_t chunks = (heads_a_group + kHeads - 1) / kHeads;
  const int64_t chunk = blockIdx.y % chunks;
  work.t = blockIdx.x;
  work.kv_head = blockIdx.y / chunks;
  work.head0 = work.kv_head * heads_a_group + chunk * kHeads;
  work.heads = int(min(int64_t(kHeads), heads_a_group - chunk * kHeads));
  work.split = blockIdx.z;
  const int64_t visible = map.position[work.t] + 1;
  work.first = max(work.split * kSplitTokens, args.window > 0 ? visible - args.window : int64_t(0));
  work.end = min((work.split + 1) * kSplitTokens, visible);
  return work;
}

__device__ float* partial_of(const DecodeArgs& args, const Work& work, int64_t head, int64_t d) {
  return args.partial + ((work.t * args.heads + head) * gridDim.z + work.split) * (d + 2);
}

// Runs the block's keys through each group's states.
template <class T, int kLanes>
__device__ void attend(const DecodeArgs& args,
                       const TokenMap& map,
                       const PagedCache& cache,
                       const Work& work,
                       SoftmaxState (&state)[kHeads]) {
  constexpr int kGroups = kThreads / kLanes, kTurns = 2;
  const int64_t d = cache.head_dim;
  const int group = int(threadIdx.x) / kLanes, lane = int(threadIdx.x) % kLanes;
  const bool active = lane * kElements < d;
  const T* pages[kPages];
  const int32_t* table =
      cache.block_table + (map.sequence[work.t] * cache.kv_heads + work.kv_head) * cache.max_blocks;
#pragma unroll
  for (int i = 0; i < kPages; ++i) {
    const int64_t block = work.split * kPages + i;
    const int64_t page = block * kPageTokens < work.end ? table[block] : 0;
    pages[i] = static_cast<const T*>(cache.pool) + page * 2 * kPageTokens * d + lane * kElements;
  }
  Raw<T> q[kHeads];
#pragma unroll
  for (int h = 0; h < kHeads; ++h) {
    q[h].clear();
    if (active && h < work.heads)
      q[h].load(static_cast<const T*>(args.q) + work.t * args.ldq + (work.head0 + h) * d +
                lane * kElements);
  }
  // All lanes of a warp make the same number of turns: the sums are shuffles over the whole warp.
  for (int64_t begin = work.first; begin < work.end; begin += kGroups * kTurns) {
    Raw<T> key[kTurns], value[kTurns];
#pragma unroll
    for (int turn = 0; turn < kTurns; ++turn) {
      const int64_t s = begin + turn * kGroups + group;
      key[turn].clear();
      value[turn].clear();
      if (active && s < work.end) {
        const T* page = pages[0];
#pragma unroll
        for (int i = 1; i < kPages; ++i)
          if (s / kPageTokens % kPages == i) page = pages[i];
        const T* row = page + s % kPageTokens * d;
        key[turn].load(row);
        value[turn].load(row + kPageTokens * d);
      }
    }
#pragma unroll
    for (int turn = 0; turn < kTurns; ++turn) {
      const bool present = begin + turn * kGroups + group < work.end;
#pragma unroll
      for (int h = 0; h < kHeads; ++h) {
        float score = 0.0f;
#pragma unroll
        for (int i = 0; i < kElements; ++i) score = fmaf(q[h][i], key[turn][i], score);
        score = group_sum<kLanes>(score) * args.scale;
        if (present) update(state[h], score, value[turn]);
      }
    }
  }
}

template <class T, int kLanes>
__global__ void __launch_bounds__(kThreads, kBlocksAMultiprocessor)
    decode_kernel(DecodeArgs args, TokenMap map, PagedCache cache) {
  let_next_start();
  wait_for_previous();
  const Work work = find_work(args, map, cache);
  const int64_t d = cache.head_dim;
  if (work.first >= work.end) {  // beyond the token's keys
    for (int h = int(threadIdx.x); h < work.heads; h += kThreads) {
      float* partial = partial_of(args, work, work.head0 + h, d);
      partial[d] = -INFINITY;
      partial[d + 1] = 0.0f;
    }
    return;
  }
  SoftmaxState state[kHeads];
  attend<T, kLanes>(args, map, cache, work, state);

  constexpr int kWidth = kLanes * kElements;
  __shared__ float shared_o[kWarps][kHeads][kWidth];
  __shared__ float shared_m[kHeads][kWarps], shared_l[kHeads][kWarps];
  const int warp = int(threadIdx.x) / kWarp, lane = int(threadIdx.x) % kWarp;
#pragma unroll
  for (int h = 0; h < kHeads; ++h) {
    merge_groups<kLanes>(state[h]);
    if (lane < kLanes) {
#pragma unroll
      for (int i = 0; i < kElements; ++i) shared_o[warp][h][lane * kElements + i] = state[h].o[i];
    }
    if (lane == 0) {
      shared_m[h][warp] = state[h].m;
      shared_l[h][warp] = state[h].l;
    }
  }
  __syncthreads();
  for (int at = int(threadIdx.x); at < work.heads * kWidth; at += kThreads) {
    const int h = at / kWidth, i = at % kWidth;
    float m = -INFINITY, l = 0.0f, o = 0.0f;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) m = fmaxf(m, shared_m[h][w]);
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      const float scale = rescale(shared_m[h][w], shared_l[h][w], m);
      l += shared_l[h][w] * scale;
      o += shared_o[w][h][i] * scale;
    }
    float* partial = partial_of(args, work, work.head0 + h, d);
    if (i < d) partial[i] = o;
    if (i == 0) {
      partial[d] = m;
      partial[d + 1] = l;
    }
  }
}

// A block merges the splits of one head, kMergeSplits at a time: first what each is worth, every
// thread one of them, then the sums, every thread an element.
constexpr int kMergeThreads = 128;
constexpr int kMergeSplits = kMergeThreads;

template <class T>
__global__ void __launch_bounds__(kMergeThreads)
    merge_kernel(DecodeArgs args, int64_t splits, int64_t d) {
  let_next_start();
  wait_for_previous();
  __shared__ float worth[kMergeSplits], scratch[kWarp + 1];
  const int64_t t = blockIdx.x, head = blockIdx.y;
  const float* partial = args.partial + (t * args.heads + head) * splits * (d + 2);
  float own_max = -INFINITY;
  for (int64_t s = threadIdx.x; s < splits; s += kMergeThreads)
    own_max = fmaxf(own_max, partial[s * (d + 2) + d]);
  const float m = block_max(own_max, scratch);
  constexpr int kItems = 256 / kMergeThreads;  // of D, a thread
  float o[kItems] = {}, l = 0.0f;
  for (int64_t begin = 0; begin < splits; begin += kMergeSplits) {
    const int count = int(min(int64_t(kMergeSplits), splits - begin));
    if (int(threadIdx.x) < count) {
      const float* split = partial + (begin + threadIdx.x) * (d + 2);
      const float scale = rescale(split[d], split[d + 1], m);
      worth[threadIdx.x] = scale;
      l += split[d + 1] * scale;
    }
    __syncthreads();
#pragma unroll 8
    for (int s = 0; s < count; ++s) {
      const float scale = worth[s];
#pragma unroll
      for (int i = 0; i < kItems; ++i) {
        const int64_t at = int64_t(threadIdx.x) + i * kMergeThreads;
        // A split without keys has not written its sums.
        if (at < d && scale > 0.0f) o[i] += partial[(begin + s) * (d + 2) + at] * scale;
      }
    }
    __syncthreads();
  }
  l = block_sum(l, scratch);
  T* out = static_cast<T*>(args.out) + (t * args.heads + head) * d;
#pragma unroll
  for (int i = 0; i < kItems; ++i) {
    const int64_t at = int64_t(threadIdx.x) + i * kMergeThreads;
    if (at < d) out[at] = from_float<T>(l > 0.0f ? o[i] / l : 0.0f);
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
    launch_overlapped(decode_kernel<T, 8>, grid, dim3(kThreads), stream, args, map, cache);
  else if (cache.head_dim <= 128)
    launch_overlapped(decode_kernel<T, 16>, grid, dim3(kThreads), stream, args, map, cache);
  else
    launch_overlapped(decode_kernel<T, 32>, grid, dim3(kThreads), stream, args, map, cache);
  const dim3 merge_grid(static_cast<unsigned>(map.t), static_cast<unsigned>(args.heads));
  launch_overlapped(merge_kernel<T>, merge_grid, dim3(kMergeThreads), stream, args, splits,
                    cache.head_dim);
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
