// Private to the fast forward kernel: its parameters, the shared memory of a block, and what the
// copying warp tells the computing ones.
#pragma once

#include <cuda.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/block_sparse/cuda/attention_mma.cuh"
#include "kernels/common/cuda/launch.cuh"

namespace longspur::kernels::block_sparse::cuda {

inline constexpr int kGroupThreads = 128;  // of a warpgroup
inline constexpr int kConsumers = 2;       // warpgroups, of 64 query rows each
inline constexpr int kThreads = (1 + kConsumers) * kGroupThreads;
inline constexpr int kQueryRows = 128, kGroupRows = 64;  // of an item
inline constexpr int kTileKeys = 128;
inline constexpr int kPageKeys = 64;
inline constexpr int kNever = 1 << 30;  // first key of a half tile that does not exist

struct ForwardParams {
  const int32_t* cu_q;
  const int32_t* cu_k;
  const int32_t* block_table;  // null: keys and values stand in the order of tokens
  const uint32_t* words;       // null: every block
  uint16_t* out;
  float* lse;
  int* ticket;  // zero at the start
  int64_t out_token_stride, out_head_stride, lse_stride;
  int64_t max_blocks;  // of a row of the block table
  int64_t row_words, query_blocks;
  int batch, heads, kv_heads, mask_heads;
  int block_size;    // 64 or 128
  int key_blocks;    // that a mask's row has room for
  int section_keys;  // of all KV heads of a section
  bool causal;
  float scale_log2;  // scale / ln 2
};
// Boxes: q and v [64 tokens][D], so that a tile of v is two halves; k a tile, or half of its rows
// and 64 of its columns where blocks or pages are of 64 keys.
struct ForwardMaps {
  CUtensorMap q, k, v;
};

// What the computing warps must know of an item: a block of query rows of one head.
struct ItemRecord {
  int tiles;              // < 0: there are no more items
  int masked;             // of them, at the front: some row sees not all of their keys
  int row;                // first one, within the sequence
  int queries, keys;      // of the sequence
  int query_token, head;  // query_token: of the sequence's first query
  int tail;     // keys of the first tile's first block that are the sequence's, 0 where all are
  int exact;    // the largest score is looked for in every tile
  int pending;  // number of the item's PendingItem
};
// And of a tile: where its two halves' keys stand.
struct TileRecord {
  int first[2];
};
// An item that the computing warps may find too large for the fast way (forward_consumer.cuh).
struct PendingItem {
  int ticket;
  uint32_t end;  // tiles of the block so far, this item's included
  int overflow;
};

template <int kD>
struct ForwardShape {
  static constexpr int kDim = kD;
  static constexpr int kHalves = kD / 64;
  static constexpr int kStages = kD == 64 ? 4 : 2;  // powers of two
  static constexpr int kItems = 4;                  // records; three may be in use
  static constexpr int kPending = 8;                // more than kStages + 1
  static constexpr uint32_t kGroupBytes = kGroupRows * kD * 2;
  static constexpr uint32_t kTileBytes = kTileKeys * kD * 2;
  static constexpr uint32_t kQueries = 0;  // offsets
  static constexpr uint32_t kKeys = kConsumers * kGroupBytes;
  static constexpr uint32_t kValues = kKeys + kStages * kTileBytes;
  static constexpr uint32_t kBarriers = kValues + kStages * kTileBytes;
  static constexpr uint32_t kTiles = kBarriers + 256;
  static constexpr uint32_t kItemRecords = kTiles + kStages * sizeof(TileRecord);
  static constexpr uint32_t kPendingItems = kItemRecords + kItems * sizeof(ItemRecord);
  static constexpr uint32_t kBytes = kPendingItems + kPending * sizeof(PendingItem) + 1024;
};

// Shared memory by address; the barriers are those of a stage or of a warpgroup's
// queries.
template <class S>
struct ForwardShared {
  uint32_t base;

  __device__ uint32_t queries(int group) const {
    return base + S::kQueries + uint32_t(group) * S::kGroupBytes;
  }
  __device__ uint32_t keys(uint32_t n) const {
    return base + S::kKeys + n % S::kStages * S::kTileBytes;
  }
  __device__ uint32_t values(uint32_t n) const {
    return base + S::kValues + n % S::kStages * S::kTileBytes;
  }
  __device__ uint32_t full_keys(uint32_t n) const { return barrier(n, 0); }
  __device__ uint32_t empty_keys(uint32_t n) const { return barrier(n, 1); }
  __device__ uint32_t full_values(uint32_t n) const { return barrier(n, 2); }
  __device__ uint32_t empty_values(uint32_t n) const { return barrier(n, 3); }
  __device__ uint32_t full_queries(int group) const {
    return base + S::kBarriers + S::kStages * 32 + uint32_t(group) * 16;
  }
  __device__ uint32_t empty_queries(int group) const { return full_queries(group) + 8; }
  // Generic pointers, for records.
  __device__ TileRecord& tile(uint32_t n) const {
    return at<TileRecord>(S::kTiles)[n % S::kStages];
  }
  __device__ ItemRecord& item(uint32_t n) const {
    return at<ItemRecord>(S::kItemRecords)[n % S::kItems];
  }
  __device__ volatile PendingItem& pending(uint32_t n) const {
    return at<volatile PendingItem>(S::kPendingItems)[n % S::kPending];
  }

  // The phase of a stage's barriers in which tile n is in it.
  static __device__ uint32_t phase(uint32_t n) { return n / S::kStages & 1u; }

  __device__ void init() const {
    constexpr uint32_t kWarps = kConsumers * kGroupThreads / kWarp;
    for (uint32_t n = 0; n < S::kStages; ++n) {
      init_barrier(full_keys(n), 1);
      init_barrier(empty_keys(n), kWarps);
      init_barrier(full_values(n), 1);
      init_barrier(empty_values(n), kWarps);
    }
    for (int group = 0; group < kConsumers; ++group) {
      init_barrier(full_queries(group), 1);
      init_barrier(empty_queries(group), kWarps / kConsumers);
    }
    publish_barriers();
  }

 private:
  __device__ uint32_t barrier(uint32_t n, uint32_t kind) const {
    return base + S::kBarriers + (n % S::kStages * 4 + kind) * 8;
  }
  template <class T>
  __device__ T* at(uint32_t offset) const {
    return static_cast<T*>(__cvta_shared_to_generic(base + offset));
  }
};

}  // namespace longspur::kernels::block_sparse::cuda
