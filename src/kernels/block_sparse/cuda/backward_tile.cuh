// Shared memory of the main kernel of the backward, and what its copying warp tells its consumers.
#pragma once

#include <cuda_runtime.h>

#include "kernels/block_sparse/cuda/attention_mma.cuh"
#include "kernels/block_sparse/cuda/backward_impl.h"
#include "kernels/common/cuda/launch.cuh"

namespace longspur::kernels::block_sparse::cuda {

inline constexpr int kGroupThreads = 128;
inline constexpr int kConsumers = 2;  // warpgroups, of 64 keys each
inline constexpr int kConsumerThreads = kConsumers * kGroupThreads;
inline constexpr int kBlockThreads = kConsumerThreads + kGroupThreads;
inline constexpr int kGroupKeys = kKeys / kConsumers;

template <class ElementType, int kDim>
struct BackwardTile {
  using Element = ElementType;
  static constexpr int kHeadDim = kDim;
  static constexpr int kQueries = queries_a_step(kDim);
  static constexpr int kKeyBytes = kKeys * kDim * 2;
  static constexpr int kQueryBytes = kQueries * kDim * 2;
  static constexpr int kStatBytes = 2 * kQueries * 4;
  static constexpr int kStageBytes = 2 * kQueryBytes + 1024;  // 1,024: what the swizzle wants
  static constexpr int kGradBytes = kKeys * kQueries * 2;     // ds^T
  static constexpr int kStages = 3;                           // 195 KB of 227
  static constexpr int kRecordBytes = 16;
  static constexpr int kBytes = 2 * kKeyBytes + kStages * (kStageBytes + kRecordBytes) +
                                2 * kGradBytes + kRecordBytes + (2 + 2 * kStages) * 8 + 1024;
  static_assert(kStatBytes <= 1024 && kBytes <= 232448);
};

// Addresses. K, V: [D / 64][128][64]; a stage: q and grad_out [D / 64][rows][64], then lse and
// delta [rows]; ds: two buffers of [rows / 64][128][64].
template <class T>
struct BackwardShared {
  uint32_t k, v, stages, ds, records, item, kv_full, kv_empty, full, empty;

  __device__ explicit BackwardShared(uint32_t base) {
    k = (base + 1023u) / 1024u * 1024u;
    v = k + uint32_t(T::kKeyBytes);
    stages = v + uint32_t(T::kKeyBytes);
    ds = stages + uint32_t(T::kStages * T::kStageBytes);
    records = ds + uint32_t(2 * T::kGradBytes);
    item = records + uint32_t(T::kStages * T::kRecordBytes);
    kv_full = item + uint32_t(T::kRecordBytes);
    kv_empty = kv_full + 8;
    full = kv_empty + 8;
    empty = full + uint32_t(T::kStages * 8);
  }
  __device__ void init() const {
    init_barrier(kv_full, 1);
    init_barrier(kv_empty, kConsumerThreads / kWarp);
    for (int i = 0; i < T::kStages; ++i) {
      init_barrier(full + uint32_t(i * 8), 1);
      init_barrier(empty + uint32_t(i * 8), kConsumerThreads / kWarp);
    }
    publish_barriers();
  }
};

// Of step n of a thread block, all items in a row.
template <class T>
struct BackwardStage {
  __device__ BackwardStage(const BackwardShared<T>& s, int n)
      : round(uint32_t(n / T::kStages)),
        q(s.stages + uint32_t(n % T::kStages * T::kStageBytes)),
        full(s.full + uint32_t(n % T::kStages * 8)),
        empty(s.empty + uint32_t(n % T::kStages * 8)),
        record(s.records + uint32_t(n % T::kStages * T::kRecordBytes)) {}
  __device__ uint32_t grad_out() const { return q + uint32_t(T::kQueryBytes); }
  __device__ uint32_t stats() const { return q + uint32_t(2 * T::kQueryBytes); }
  uint32_t round, q, full, empty, record;
};

__device__ inline void store_record(uint32_t to, int4 v) {
  asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(v.x), "r"(v.y), "r"(v.z),
               "r"(v.w)
               : "memory");
}
// Uniform in a warp, and known to be so: branches on it must not serialise the products.
__device__ inline int4 load_record(uint32_t from) {
  const uint4 v = load_shared(from);
  return make_int4(int(__shfl_sync(~0u, v.x, 0)), int(__shfl_sync(~0u, v.y, 0)),
                   int(__shfl_sync(~0u, v.z, 0)), int(__shfl_sync(~0u, v.w, 0)));
}

// A tile of query rows against the block of keys.
struct QueryStep {
  static constexpr int kActive = 1;  // << consumer: that half of the keys counts
  static constexpr int kMasked = 4, kLast = 8;

  int tile;   // of dq, stats
  int flags;  // and the rows of the sequence, from bit 8 on
  int edge;   // row r sees local keys < edge + r
  int turn;   // blocks of keys that add to the tile's dq before this one, deterministic only

  __device__ bool active(int consumer) const { return (flags >> consumer & 1) != 0; }
  __device__ bool masked() const { return (flags & kMasked) != 0; }
  __device__ bool last() const { return (flags & kLast) != 0; }
  __device__ int rows() const { return flags >> 8; }
  __device__ void store(uint32_t to) const { store_record(to, make_int4(tile, flags, edge, turn)); }
  __device__ static QueryStep load(uint32_t from) {
    const int4 v = load_record(from);
    return {v.x, v.y, v.z, v.w};
  }
};

// A block of keys, as consumers see it.
struct KeyItem {
  int keys;   // of 128; -1 ends the kernel
  int token;  // first
  int head;   // KV head; minus one less when there is no step
  int slot;

  __device__ bool end() const { return keys < 0; }
  __device__ bool empty() const { return head < 0; }
  __device__ int kv_head() const { return head < 0 ? -1 - head : head; }
  __device__ void store(uint32_t to) const { store_record(to, make_int4(keys, token, head, slot)); }
  __device__ static KeyItem load(uint32_t from) {
    const int4 v = load_record(from);
    return {v.x, v.y, v.z, v.w};
  }
};

}  // namespace longspur::kernels::block_sparse::cuda
