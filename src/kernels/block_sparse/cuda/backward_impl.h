// What the launches of the fast backward share. For .cu files only.
//
// Queries and keys of a sequence are padded to blocks of 128 in the workspace, so that tiles never
// straddle sequences and their copies are aligned. Sequence b begins at padded block
// cu_seqlens[b] / 128 + b: that needs no prefix sum over lengths and wastes at most a block each.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "base/shape.h"
#include "kernels/block_sparse/cuda/block_sparse_cuda.h"

namespace longspur::kernels::block_sparse::cuda {

inline constexpr int kKeys = 128;  // of a block of the fast kernel
// Long columns are cut so that no part is more than this share of all work: eight parts for each
// of 132 multiprocessors balance within some percent.
inline constexpr int kWorkParts = 8 * 132;
inline constexpr int kLeastPart = 16;  // blocks: below, adding up partial sums costs more
// q, grad_out and dq of the heads that are worked on at a time should stay in the L2 cache of 50
// MB: groups beyond this take one head after the other, and add up dk and dv in the workspace.
inline constexpr int64_t kGroupBytes = int64_t{32} << 20;

// What a block of keys (a column of the mask) gives one thread block to do.
struct ColumnItem {
  int column;      // KV head * padded key blocks + padded block
  int head;        // of the group, the first
  int begin, end;  // of the column's chosen blocks, from that head on in a row
  int slot;        // of the partial sums, or -1 when the item is the whole column
};

struct Control {
  int ticket, items, slots;
};

struct BackwardParams {
  const int32_t *cu_q, *cu_k;  // [B + 1]
  int batch, heads, kv_heads;
  int query_blocks, key_blocks;  // padded, of all sequences
  int query_words;               // of 32 query blocks, of the longest sequence
  int key_words;                 // of 32 key blocks of the mask, of the longest sequence
  int max_slots;
  int head_parts;  // of a group: 1, or all heads of it one by one
  bool causal, deterministic;
  float scale;
  BlockMask mask;  // words null: every block
  int mask_heads, sub_blocks;

  // workspace
  uint32_t* columns;  // [mask_heads, key_blocks, sub_blocks, query_words], bit: query block
  int* counts;        // [mask_heads, key_blocks]: chosen query blocks
  ColumnItem* items;  // [kv_heads * head_parts * key_blocks + kWorkParts]
  int* slot_columns;  // [max_slots]
  Control* control;
  float* stats;  // [heads, query_blocks, tiles][2][rows]: lse in powers of two, delta
  float* dq;     // [heads, query_blocks, tiles]: a tile in the order of the registers
  int* turns;    // [heads, query_blocks, tiles, 2], deterministic only
  float* slots;  // [max_slots, 2 (dk, dv)]: a tile of 128 keys in the order of the registers
};

// Rows of queries a step of the main kernel takes. With 128 columns, more would not fit the
// registers: 128 of a thread's 240 hold dk and dv.
constexpr int queries_a_step(int head_dim) { return head_dim == 128 ? 64 : 128; }

// Places the workspace at `base`; returns its size.
int64_t make_params(const BackwardArgs& args, void* base, BackwardParams& params);

// Columns and counts of the mask, items, row sums, zeros.
CudaStatus prepare(const BackwardArgs& args, const BackwardParams& params, cudaStream_t stream);
// dk, dv of whole columns, sums of dq and of split columns.
CudaStatus accumulate(const BackwardArgs& args, const BackwardParams& params, cudaStream_t stream);
// dq and the split columns in their own type.
CudaStatus finish(const BackwardArgs& args, const BackwardParams& params, cudaStream_t stream);

// Any type, strides and D up to 256, without a workspace: a warp a row.
CudaStatus backward_simple(const BackwardArgs& args, cudaStream_t stream);

// Padded block at which sequence b begins, and the sequence of a padded block.
__host__ __device__ inline int padded_begin(const int32_t* cu, int b) {
  return cu[b] / int(kQueryBlock) + b;
}
__device__ inline int sequence_of(const int32_t* cu, int batch, int block) {
  int low = 0, high = batch;  // padded_begin(low) <= block < padded_begin(high)
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (padded_begin(cu, middle) <= block ? low : high) = middle;
  }
  return low;
}

// Where a block of keys stands.
struct KeyBlock {
  int b, index;          // sequence, block of 128 in it
  int queries, keys;     // of the sequence
  int begin_q, begin_k;  // tokens before the sequence

  __device__ static KeyBlock of(const BackwardParams& p, int padded) {
    KeyBlock at;
    at.b = sequence_of(p.cu_k, p.batch, padded);
    at.index = padded - padded_begin(p.cu_k, at.b);
    at.begin_q = p.cu_q[at.b];
    at.begin_k = p.cu_k[at.b];
    at.queries = p.cu_q[at.b + 1] - at.begin_q;
    at.keys = p.cu_k[at.b + 1] - at.begin_k;
    return at;
  }
  __device__ bool exists() const { return index * kKeys < keys; }
};

// A tile of query rows, by its index over [heads, query_blocks, tiles].
template <int kRows>
struct QueryTile {
  int head, begin, rows;  // first token, rows of the sequence from it on: at most 0 when beyond

  __device__ static QueryTile of(const BackwardParams& p, int tile) {
    constexpr int kTiles = int(kQueryBlock) / kRows;
    const int block = tile / kTiles % p.query_blocks;
    const int b = sequence_of(p.cu_q, p.batch, block);
    const int row = (block - padded_begin(p.cu_q, b)) * int(kQueryBlock) + tile % kTiles * kRows;
    const int left = p.cu_q[b + 1] - p.cu_q[b] - row;
    return {tile / kTiles / p.query_blocks, p.cu_q[b] + row, left < kRows ? left : kRows};
  }
};

}  // namespace longspur::kernels::block_sparse::cuda
