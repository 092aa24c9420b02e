// Before the main kernel of the backward: the mask by columns, the list of items, row sums.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "kernels/block_sparse/cuda/backward_impl.h"
#include "kernels/common/cuda/launch.cuh"
#include "kernels/common/cuda/status.cuh"

namespace longspur::kernels::block_sparse::cuda {

namespace {

constexpr float kLog2e = 1.44269504f;
constexpr int kPlanThreads = 1024;
constexpr int kThreads = 256;

// First query row of n that sees key j of m.
__device__ int first_query(const BackwardParams& p, int j, int n, int m) {
  return p.causal ? max(j - (m - n), 0) : 0;
}

// A warp a word of 32 key blocks of a row of the mask: 32 x 32 bits are transposed by ballots, and
// bits of blocks that nobody sees are cleared.
__global__ void __launch_bounds__(128) transpose_mask(const BackwardParams p) {
  const int lane = int(threadIdx.x) % kWarp;
  const int64_t warp = (int64_t(blockIdx.x) * blockDim.x + threadIdx.x) / kWarp;
  if (warp >= int64_t(p.batch) * p.mask_heads * p.key_words) return;
  const int word = int(warp % p.key_words), mask_head = int(warp / p.key_words % p.mask_heads);
  const int b = int(warp / p.key_words / p.mask_heads);
  const int n = p.cu_q[b + 1] - p.cu_q[b], m = p.cu_k[b + 1] - p.cu_k[b];
  const int query_blocks = (n + int(kQueryBlock) - 1) / int(kQueryBlock);
  const int size = int(p.mask.block_size), block = word * 32 + lane;  // this lane's column
  const bool exists = block * size < m;
  const int first = exists ? first_query(p, block * size, n, m) / int(kQueryBlock) : 0;
  const int64_t tile =
      int64_t(mask_head) * p.key_blocks + padded_begin(p.cu_k, b) + block / p.sub_blocks;
  uint32_t* to = p.columns + (tile * p.sub_blocks + block % p.sub_blocks) * p.query_words;
  int count = 0;
  for (int w = 0; w < p.query_words; ++w) {
    const int i = w * 32 + lane;  // this lane's row
    uint32_t row = 0;
    if (i < query_blocks) row = p.mask.words == nullptr ? ~0u : p.mask.row(b, mask_head, i)[word];
    uint32_t column = 0;
#pragma unroll
    for (int j = 0; j < 32; ++j) {
      const uint32_t bits = __ballot_sync(~0u, (row >> j & 1u) != 0);
      if (lane == j) column = bits;
    }
    if (!exists || w * 32 + 31 < first) column = 0;
    if (first > w * 32 && first - w * 32 < 32) column &= ~0u << (first - w * 32);
    // Two blocks of 64 keys are worked on together.
    const uint32_t other = p.sub_blocks == 2 ? __shfl_xor_sync(~0u, column, 1) : 0u;
    count += __popc(column | other);
    if (exists || (p.sub_blocks == 2 && (block & ~1) * size < m)) to[w] = column;
  }
  if (exists && block % p.sub_blocks == 0) p.counts[tile] = count;
}

// What items are made of: a column, or one head's share of it. Unit u of [kv_heads, head_parts,
// key_blocks].
struct Unit {
  int column, head;  // of the group, the first
  int count;         // chosen blocks; -1 where there are no keys

  __device__ Unit(const BackwardParams& p, int u) {
    const int padded = u % p.key_blocks, kv_head = u / p.key_blocks / p.head_parts;
    const int group = p.heads / p.kv_heads, heads = group / p.head_parts;
    column = kv_head * p.key_blocks + padded;
    head = u / p.key_blocks % p.head_parts * heads;
    count = KeyBlock::of(p, padded).exists() ? 0 : -1;
    for (int h = head; count >= 0 && h < head + heads; ++h) {
      const int mask_head = (kv_head * group + h) / (p.heads / p.mask_heads);
      count += p.counts[mask_head * p.key_blocks + padded];
    }
  }
};

// Exclusive sum over a block; `total` is everybody's.
__device__ int64_t block_scan(int64_t x, int64_t* scratch, int64_t& total) {
  const int warp = int(threadIdx.x) / kWarp, lane = int(threadIdx.x) % kWarp;
  int64_t sum = x;
  for (int offset = 1; offset < kWarp; offset *= 2) {
    const int64_t below = __shfl_up_sync(~0u, sum, unsigned(offset));
    if (lane >= offset) sum += below;
  }
  __syncthreads();
  if (lane == kWarp - 1) scratch[warp] = sum;
  __syncthreads();
  int64_t before = 0;
  total = 0;
  for (int w = 0; w < kPlanThreads / kWarp; ++w) {
    if (w < warp) before += scratch[w];
    total += scratch[w];
  }
  return before + sum - x;
}

// One block: the items, unit after unit, so that neighbours read the same queries. Every thread has
// a run of units.
//
// Deterministic sums of dq begin with the last column that a row of queries sees: that one begins
// at this row, so that hardly anybody waits, and the first column, which every row may have chosen,
// comes when all others are done.
__global__ void __launch_bounds__(kPlanThreads) plan_items(const BackwardParams p) {
  __shared__ int64_t scratch[kPlanThreads / kWarp];
  const int units = p.kv_heads * p.head_parts * p.key_blocks;
  const int run = (units + kPlanThreads - 1) / kPlanThreads;
  const int begin = min(int(threadIdx.x) * run, units), end = min(begin + run, units);
  int64_t work = 0;
  for (int u = begin; u < end; ++u) work += max(Unit(p, u).count, 0);
  int64_t total;
  block_scan(work, scratch, total);
  const int part = p.max_slots == 0 ? INT32_MAX - 1
                                    : max(int((total + kWorkParts - 1) / kWorkParts), kLeastPart);

  const bool by_heads = p.head_parts > 1;  // every column has a slot, its own
  const auto parts_of = [&](int count) {
    if (count < 0 || (by_heads && count == 0)) return 0;
    return count > part ? (count - 1) / part + 1 : 1;
  };
  int64_t items = 0, slots = 0;  // of this thread
  for (int u = begin; u < end; ++u) {
    const int parts = parts_of(Unit(p, u).count);
    items += parts;
    slots += parts > 1;
  }
  int64_t all_items, all_slots;
  int64_t item = block_scan(items, scratch, all_items);
  int64_t slot = block_scan(slots, scratch, all_slots);
  for (int u = begin; u < end; ++u) {
    const Unit unit(p, u);
    const int parts = parts_of(unit.count);
    const int length = parts > 0 ? (unit.count + parts - 1) / parts : 0;
    const int to = by_heads ? unit.column : parts > 1 ? int(slot++) : -1;
    if (to >= 0) p.slot_columns[to] = unit.column;
    for (int i = 0; i < parts; ++i, ++item) {
      p.items[p.deterministic ? all_items - 1 - item : item] = {
          unit.column, unit.head, i * length, min((i + 1) * length, unit.count), to};
    }
  }
  if (threadIdx.x == 0) *p.control = {0, int(all_items), by_heads ? p.max_slots : int(all_slots)};
}

__device__ inline float2 pair_to_floats(__nv_bfloat162 x) { return __bfloat1622float2(x); }
__device__ inline float2 pair_to_floats(__half2 x) { return __half22float2(x); }
template <class Element>
struct PairOf;
template <>
struct PairOf<__nv_bfloat16> {
  using Type = __nv_bfloat162;
};
template <>
struct PairOf<__half> {
  using Type = __half2;
};

struct RowSums {
  ConstRows out, grad_out;
  const float *lse, *grad_lse;
  int64_t lse_stride, grad_lse_stride;
};

template <class Element>
__device__ float dot8(const Element* a, const Element* b) {
  using Pair = typename PairOf<Element>::Type;
  const Vec<Pair> x = *reinterpret_cast<const Vec<Pair>*>(a);
  const Vec<Pair> y = *reinterpret_cast<const Vec<Pair>*>(b);
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 u = pair_to_floats(x.data[i]), v = pair_to_floats(y.data[i]);
    sum = fmaf(u.x, v.x, fmaf(u.y, v.y, sum));
  }
  return sum;
}

// A block a tile of query rows: lse in powers of two (+inf, a probability of 0, for rows that see
// nothing or do not exist), delta, and a dq of zeros.
template <class Element, int kDim>
__global__ void __launch_bounds__(kThreads) sum_rows(const BackwardParams p, const RowSums sums) {
  constexpr int kRows = queries_a_step(kDim), kLanes = kDim / 8;  // lanes a row
  const int tile = int(blockIdx.x);
  const auto at = QueryTile<kRows>::of(p, tile);
  if (at.rows <= 0) return;
  float* stats = p.stats + int64_t(tile) * 2 * kRows;
  const int lane = int(threadIdx.x) % kLanes;
  for (int r = int(threadIdx.x) / kLanes; r < kRows; r += kThreads / kLanes) {
    const int64_t token = at.begin + r;
    float lse = INFINITY, delta = 0.0f;
    if (r < at.rows) {
      const auto row = [&](const ConstRows& rows) {
        return static_cast<const Element*>(rows.data) + token * rows.token_stride +
               at.head * rows.head_stride + lane * 8;
      };
      delta = dot8(row(sums.out), row(sums.grad_out));
      const float natural = sums.lse[at.head * sums.lse_stride + token];
      if (natural != -INFINITY) lse = natural * kLog2e;
    }
#pragma unroll
    for (int offset = kLanes / 2; offset > 0; offset /= 2)
      delta += __shfl_xor_sync(~0u, delta, offset);
    if (lane != 0) continue;
    if (r < at.rows && sums.grad_lse != nullptr)
      delta -= sums.grad_lse[at.head * sums.grad_lse_stride + token];
    stats[r] = lse;
    stats[kRows + r] = delta;
  }
  auto* dq = reinterpret_cast<float4*>(p.dq + int64_t(tile) * kRows * kDim);
  for (int i = int(threadIdx.x); i < kRows * kDim / 4; i += kThreads)
    dq[i] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
  if (p.deterministic && threadIdx.x < 2) p.turns[tile * 2 + int(threadIdx.x)] = 0;
}

__global__ void __launch_bounds__(kThreads) clear_slots(const BackwardParams p, int floats) {
  if (int(blockIdx.x) >= p.control->slots) return;
  auto* slot = reinterpret_cast<float4*>(p.slots + int64_t(blockIdx.x) * floats);
  for (int i = int(threadIdx.x); i < floats / 4; i += kThreads)
    slot[i] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
}

template <class Element, int kDim>
void launch_sums(const BackwardArgs& args, const BackwardParams& p, cudaStream_t stream) {
  const RowSums sums{args.out,      args.grad_out,   args.lse,
                     args.grad_lse, args.lse_stride, args.grad_lse_stride};
  const int64_t tiles = int64_t(p.heads) * p.query_blocks * (kQueryBlock / queries_a_step(kDim));
  sum_rows<Element, kDim><<<unsigned(tiles), kThreads, 0, stream>>>(p, sums);
}

}  // namespace

CudaStatus prepare(const BackwardArgs& args, const BackwardParams& p, cudaStream_t stream) {
  const int64_t warps = int64_t(p.batch) * p.mask_heads * p.key_words;
  const int64_t blocks = ceil_div(warps, int64_t{4});
  if (blocks > INT32_MAX) return "block-sparse backward: more blocks of keys than a launch has";
  transpose_mask<<<unsigned(blocks), 128, 0, stream>>>(p);
  plan_items<<<1, kPlanThreads, 0, stream>>>(p);
  const int dim = int(args.shape.head_dim);
  if (p.max_slots > 0)
    clear_slots<<<unsigned(p.max_slots), kThreads, 0, stream>>>(p, 2 * kKeys * dim);
  const bool wide = dim == 128;
  if (args.shape.type == Type::kBF16)
    (wide ? launch_sums<__nv_bfloat16, 128> : launch_sums<__nv_bfloat16, 64>)(args, p, stream);
  else
    (wide ? launch_sums<__half, 128> : launch_sums<__half, 64>)(args, p, stream);
  return launch_status();
}

}  // namespace longspur::kernels::block_sparse::cuda
