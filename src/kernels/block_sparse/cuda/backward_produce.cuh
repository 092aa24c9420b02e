// The copying warp of the backward's main kernel: takes items, walks their columns of the mask and
// fills the ring, one tile of query rows after the other.
#pragma once

#include <cuda.h>

#include "kernels/block_sparse/cuda/backward_tile.cuh"

namespace longspur::kernels::block_sparse::cuda {

// By tensor map, tokens x heads in tiles.
struct BackwardMaps {
  CUtensorMap q, k, v, grad_out;
};

template <class T>
class QueryProducer {
 public:
  __device__ QueryProducer(const BackwardParams& params,
                           const BackwardMaps& maps,
                           const BackwardShared<T>& shared)
      : p_(params), maps_(maps), shared_(shared), lane_(int(threadIdx.x) % kWarp) {}

  // All lanes.
  __device__ void run() {
    const int items = p_.control->items;
    int ticket = next_ticket();
    for (; ticket < items; ++round_) {
      const ColumnItem item = p_.items[ticket];
      ticket = next_ticket();  // early: its latency is hidden
      begin(item);
      if (item.begin < item.end) walk(item);
    }
    if (lane_ != 0) return;
    wait_keys_free();
    KeyItem{-1, 0, 0, 0}.store(shared_.item);
    arrive(shared_.kv_full);
  }

 private:
  __device__ int next_ticket() const {
    int ticket = 0;
    if (lane_ == 0) ticket = atomicAdd(&p_.control->ticket, 1);
    return __shfl_sync(~0u, ticket, 0);
  }
  __device__ void wait_keys_free() const {
    if (round_ > 0) wait_barrier(shared_.kv_empty, uint32_t(round_ - 1) & 1u);
  }

  // Announces an item and copies its keys.
  __device__ void begin(const ColumnItem& item) {
    head_ = item.column / p_.key_blocks;
    padded_ = item.column % p_.key_blocks;
    at_ = KeyBlock::of(p_, padded_);
    if (lane_ != 0) return;
    const int keys = min(kKeys, at_.keys - at_.index * kKeys);
    const int token = at_.begin_k + at_.index * kKeys;
    const bool empty = item.begin >= item.end;
    wait_keys_free();
    KeyItem{keys, token, empty ? -1 - head_ : head_, item.slot}.store(shared_.item);
    if (empty) {
      arrive(shared_.kv_full);
      return;
    }
    expect_bytes(shared_.kv_full, 2 * T::kKeyBytes);
    copy_tile(shared_.k, &maps_.k, token, 0, head_, shared_.kv_full);
    copy_tile(shared_.v, &maps_.v, token, 0, head_, shared_.kv_full);
  }

  // Blocks [begin, end) of the column's, counted over the heads of the group.
  __device__ void walk(const ColumnItem& item) {
    const int group = p_.heads / p_.kv_heads;
    has_pending_ = false;
    int position = 0;
    for (int h = head_ * group + item.head; h < (head_ + 1) * group && position < item.end; ++h) {
      const int mask_head = h / (p_.heads / p_.mask_heads);
      const uint32_t* low = p_.columns + (int64_t(mask_head) * p_.key_blocks + padded_) *
                                             p_.sub_blocks * p_.query_words;
      const uint32_t* high = low + (p_.sub_blocks - 1) * p_.query_words;
      for (int w = 0; w < p_.query_words && position < item.end; w += kWarp)
        walk_words(item, h, mask_head, w, low, high, position);
    }
    if (has_pending_) issue(QueryStep::kLast);
  }

  // 32 words, one a lane.
  __device__ void walk_words(const ColumnItem& item,
                             int h,
                             int mask_head,
                             int first_word,
                             const uint32_t* low,
                             const uint32_t* high,
                             int& position) {
    const bool exists = first_word + lane_ < p_.query_words;
    const uint32_t a = exists ? low[first_word + lane_] : 0u;
    const uint32_t b = exists ? high[first_word + lane_] : 0u;
    const int count = int(__reduce_add_sync(~0u, unsigned(__popc(a | b))));
    if (position + count <= item.begin) {
      position += count;
      return;
    }
    uint32_t lanes = __ballot_sync(~0u, (a | b) != 0);
    for (; lanes != 0 && position < item.end; lanes &= lanes - 1) {
      const int from = __ffs(int(lanes)) - 1;
      const uint32_t wa = __shfl_sync(~0u, a, from), wb = __shfl_sync(~0u, b, from);
      for (uint32_t bits = wa | wb; bits != 0 && position < item.end; bits &= bits - 1) {
        const int bit = __ffs(int(bits)) - 1;
        if (position++ < item.begin) continue;
        visit(h, mask_head, (first_word + from) * 32 + bit,
              int(wa >> bit & 1u) | int(wb >> bit & 1u) << 1);
      }
    }
  }

  // A block of queries: its tiles that see a key of a chosen half.
  __device__ void visit(int h, int mask_head, int block, int halves) {
    const int visible = at_.keys - at_.queries + 1;  // row r of the sequence sees keys < this + r
    const int first_key = at_.index * kKeys;
    constexpr int kTiles = int(kQueryBlock) / T::kQueries;
    for (int t = 0; t < kTiles; ++t) {
      const int row = block * int(kQueryBlock) + t * T::kQueries;
      const int rows = min(T::kQueries, at_.queries - row);
      if (rows <= 0) return;
      const int edge = p_.causal ? row + visible - first_key : kKeys;
      const int all = at_.keys - first_key;
      const int end = p_.causal ? min(edge + rows - 1, all) : all;  // for the last row
      int flags = rows << 8;
      for (int half = 0; half < kConsumers; ++half)
        if ((halves >> half & 1) != 0 && half * kGroupKeys < end)
          flags |= QueryStep::kActive << half;
      if ((flags & 3) == 0) continue;
      if ((flags & 3) != 3 || min(edge, all) < kKeys) flags |= QueryStep::kMasked;
      if (has_pending_) issue(0);
      const int padded = padded_begin(p_.cu_q, at_.b) + block;
      const int turn = p_.deterministic ? turn_of(mask_head, block, first_key + end) : 0;
      pending_ = {(h * p_.query_blocks + padded) * kTiles + t, flags, edge, turn};
      token_ = at_.begin_q + row;
      query_head_ = h;
      has_pending_ = true;
    }
  }

  // Chosen blocks of the row after this one that the last row of a tile sees: those add first.
  __device__ int turn_of(int mask_head, int block, int visible_keys) const {
    const int end = (visible_keys - 1) / (kKeys / p_.sub_blocks) + 1;
    if (p_.mask.words == nullptr) return end - 1 - at_.index;
    const int begin = (at_.index + 1) * p_.sub_blocks;
    const uint32_t* row = p_.mask.row(at_.b, mask_head, block);
    int count = 0;
    for (int w = begin / 32 + lane_; w * 32 < end; w += kWarp) {
      uint32_t bits = row[w];
      if (begin > w * 32) bits &= ~0u << (begin - w * 32);
      if (end - w * 32 < 32) bits &= (1u << (end - w * 32)) - 1u;
      if (p_.sub_blocks == 2) bits = (bits | bits >> 1) & 0x55555555u;
      count += __popc(bits);
    }
    return int(__reduce_add_sync(~0u, unsigned(count)));
  }

  // The step that was held back until it was known whether it is the last.
  __device__ void issue(int flags) {
    if (lane_ == 0) {
      const BackwardStage<T> stage(shared_, steps_);
      if (stage.round > 0) wait_barrier(stage.empty, (stage.round - 1) & 1u);
      QueryStep step = pending_;
      step.flags |= flags;
      step.store(stage.record);
      expect_bytes(stage.full, 2 * T::kQueryBytes + T::kStatBytes);
      copy_tile(stage.q, &maps_.q, token_, 0, query_head_, stage.full);
      copy_bulk(stage.stats(), p_.stats + int64_t(step.tile) * 2 * T::kQueries, T::kStatBytes,
                stage.full);
      copy_tile(stage.grad_out(), &maps_.grad_out, token_, 0, query_head_, stage.full);
    }
    __syncwarp();
    ++steps_;
  }

  const BackwardParams& p_;
  const BackwardMaps& maps_;
  const BackwardShared<T>& shared_;
  int lane_;
  int round_ = 0, steps_ = 0;  // items and steps so far
  int head_ = 0, padded_ = 0;  // of the item
  KeyBlock at_;
  QueryStep pending_;
  int token_ = 0, query_head_ = 0;  // of the pending step
  bool has_pending_ = false;
};

}  // namespace longspur::kernels::block_sparse::cuda
