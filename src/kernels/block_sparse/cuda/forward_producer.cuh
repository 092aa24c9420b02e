// The copying warp of the fast forward kernel: takes items, reads their lists from the bits of the
// mask, and keeps the stages of keys and values filled.
//
// Items are taken in the order sequence, section of KV heads, query block from the last to the
// first, query head: those under way at one time share keys and values in L2, as many KV heads make
// a section as fit there, and with a causal mask the longest of a section come first. Blocks of an
// item go from the last to the first, so that the tiles of which not every row sees everything, and
// only those, are at the front.
#pragma once

#include "kernels/block_sparse/cuda/forward_layout.cuh"

namespace longspur::kernels::block_sparse::cuda {

// An item as the copying warp sees it; the same in all lanes but for `word`.
struct Item {
  int ticket = -1;
  int sequence, head, kv_head, row;
  int queries, keys, query_token, key_token;
  int end, diagonal;      // blocks of keys, as in VisibleBlocks
  const uint32_t* words;  // the row of the mask, or null
  int chunk;              // of 1,024 blocks, the last that holds visible ones
  uint32_t word;          // this lane's of that chunk
  bool exact = false;
};

// Where items are: the sequence of a ticket is searched from where the last one was found.
class Schedule {
 public:
  __device__ explicit Schedule(const ForwardParams& p) : p_(p) {}

  // False: there is no such item.
  __device__ bool find(int ticket, Item& item) {
    const int lane = int(threadIdx.x) % kWarp;
    if (ticket < items_before_) first_ = items_before_ = 0;
    for (; first_ < p_.batch; first_ += kWarp) {
      const int b = min(first_ + lane, p_.batch - 1);
      const int begin = p_.cu_q[b];
      const int queries = first_ + lane < p_.batch ? p_.cu_q[b + 1] - begin : 0;
      int sum = (queries + kQueryRows - 1) / kQueryRows * p_.heads;  // of the sequences up to b
      const int own = sum;
#pragma unroll
      for (int offset = 1; offset < kWarp; offset *= 2) {
        const int below = __shfl_up_sync(~0u, sum, offset);
        if (lane >= offset) sum += below;
      }
      const int last = __shfl_sync(~0u, sum, kWarp - 1);
      if (ticket < items_before_ + last) {
        const uint32_t after = __ballot_sync(~0u, ticket < items_before_ + sum);
        const int found = __ffs(int(after)) - 1;
        const int within = ticket - items_before_ - __shfl_sync(~0u, sum - own, found);
        item.sequence = first_ + found;
        item.queries = __shfl_sync(~0u, queries, found);
        item.query_token = __shfl_sync(~0u, begin, found);
        place(ticket, within, item);
        return true;
      }
      items_before_ += last;
    }
    first_ = items_before_ = 0;
    return false;
  }

 private:
  __device__ void place(int ticket, int within, Item& item) const {
    item.key_token = p_.cu_k[item.sequence];
    item.keys = p_.cu_k[item.sequence + 1] - item.key_token;
    const int blocks = (item.queries + kQueryRows - 1) / kQueryRows;
    const int group = p_.heads / p_.kv_heads;
    const int section = min(p_.kv_heads, max(p_.section_keys / max(item.keys, 1), 1));
    const int of_section = blocks * group * section;
    const int kv_head = within / of_section * section;  // the section's first
    const int heads = min(section, p_.kv_heads - kv_head) * group;
    const int rest = within % of_section;
    const int i = blocks - 1 - rest / heads;
    item.ticket = ticket;
    item.head = kv_head * group + rest % heads;
    item.kv_head = item.head / group;
    item.row = i * kQueryRows;
    item.exact = false;
    const int all = (item.keys + p_.block_size - 1) / p_.block_size;
    item.end = all;
    item.diagonal = item.keys / p_.block_size;
    if (p_.causal) {  // keys that the first and the last row see
      const int first = item.keys - item.queries + item.row + 1;
      const int last = item.keys - item.queries + min(item.row + kQueryRows, item.queries);
      item.diagonal = max(first, 0) / p_.block_size;
      item.end = (max(last, 0) + p_.block_size - 1) / p_.block_size;
    }
    item.words = nullptr;
    if (p_.words != nullptr) {
      const int mask_head = item.head / (p_.heads / p_.mask_heads);
      const int64_t row =
          (int64_t(item.sequence) * p_.mask_heads + mask_head) * p_.query_blocks + i;
      item.words = p_.words + row * p_.row_words;
      item.end = min(item.end, p_.key_blocks);
    }
    item.chunk = max(item.end - 1, 0) / 1024;
    item.word = visible_word(item, item.chunk);
  }

 public:
  // This lane's 32 blocks of a chunk, those beyond the visible ones cleared.
  static __device__ uint32_t visible_word(const Item& item, int chunk) {
    const int index = chunk * kWarp + int(threadIdx.x) % kWarp;
    const int visible = item.end - index * 32;
    if (visible <= 0) return 0;
    const uint32_t word = item.words != nullptr ? __ldg(item.words + index) : ~0u;
    return visible >= 32 ? word : word & ((1u << visible) - 1u);
  }
  // Listed blocks, and those of them that not every row sees in full.
  static __device__ void count(const Item& item, int& blocks, int& masked) {
    blocks = masked = 0;
    for (int chunk = item.chunk; chunk >= 0; --chunk) {
      const uint32_t word = chunk == item.chunk ? item.word : visible_word(item, chunk);
      blocks += __popc(word);
      const int full = item.diagonal - (chunk * kWarp + int(threadIdx.x) % kWarp) * 32;
      if (full < 32) masked += __popc(full <= 0 ? word : word >> full);
    }
    blocks = __reduce_add_sync(~0u, blocks);
    masked = __reduce_add_sync(~0u, masked);
  }

 private:
  const ForwardParams& p_;
  int first_ = 0;         // sequence
  int items_before_ = 0;  // of the sequences before it
};

// The listed blocks of an item from the last to the first.
class Blocks {
 public:
  __device__ explicit Blocks(const Item& item) : item_(item), chunk_(item.chunk), word_(item.word) {
    filled_ = __ballot_sync(~0u, word_ != 0);
  }
  // Must not be called more often than there are blocks.
  __device__ int next() {
    while (filled_ == 0) {
      word_ = Schedule::visible_word(item_, --chunk_);
      filled_ = __ballot_sync(~0u, word_ != 0);
    }
    const int lane = 31 - __clz(int(filled_));
    const uint32_t word = __shfl_sync(~0u, word_, lane);
    const int bit = 31 - __clz(int(word));
    const uint32_t rest = word & ~(1u << bit);
    if (int(threadIdx.x) % kWarp == lane) word_ = rest;
    if (rest == 0) filled_ &= ~(1u << lane);
    return (chunk_ * kWarp + lane) * 32 + bit;
  }

 private:
  const Item& item_;
  int chunk_;
  uint32_t word_, filled_;
};

template <class S>
class Producer {
 public:
  __device__ Producer(const ForwardParams& p, const ForwardMaps& maps, ForwardShared<S> shared)
      : p_(p),
        maps_(maps),
        shared_(shared),
        schedule_(p),
        split_(p.block_size == kPageKeys || p.block_table != nullptr),
        leader_(threadIdx.x % kWarp == 0) {}

  __device__ void run() {
    Item next;
    bool more = schedule_.find(int(blockIdx.x), next);
    while (more) {
      redo_overflowed(tiles_ - min(tiles_, uint32_t(S::kStages)));
      const Item item = next;
      more = issue(item, &next);
    }
    // Items that are made again never overflow.
    wait_for_values(tiles_);
    redo_overflowed(tiles_);
    wait_for_queries(0);
    wait_for_queries(1);
    if (leader_) {
      shared_.item(items_).tiles = -1;
      for (int group = 0; group < kConsumers; ++group) arrive(shared_.full_queries(group));
    }
  }

 private:
  // Copies an item's tiles. With `next`, the ticket after it is taken and looked up on the way;
  // false: it is past the end.
  __device__ bool issue(const Item& item, Item* next) {
    int ticket = 0;
    if (next != nullptr && leader_) ticket = int(gridDim.x) + atomicAdd(p_.ticket, 1);
    int blocks, masked;
    Schedule::count(item, blocks, masked);
    int tiles = blocks;
    bool half = false;  // the first tile is of one block of 64
    if (p_.block_size != kTileKeys) {
      half = blocks % 2 != 0;
      tiles = (blocks + 1) / 2;
      masked = half ? 1 + max(masked, 1) / 2 : (masked + 1) / 2;
    }
    Blocks list(item);
    bool more = false;
    // Tiles are looked up before the stage that the one before waits for is free.
    Tile ahead, keys;
    int values[2];  // as Tile::token
    if (tiles > 0) ahead = next_tile(item, list, half);
    for (int j = 0; j <= tiles; ++j) {
      values[0] = keys.token[0];
      values[1] = keys.token[1];
      keys = ahead;
      if (j + 1 < tiles) ahead = next_tile(item, list, false);
      if (j < tiles) copy_keys(item, tiles_ + uint32_t(j), keys);
      if (j == 0)
        publish(item, tiles, masked, keys.first[0]);
      else
        copy_values(item, tiles_ + uint32_t(j) - 1u, values);
      // By now the ticket has come; the next item's list comes while this one's tiles are copied.
      if (next != nullptr && j == min(tiles, 1))
        more = schedule_.find(__shfl_sync(~0u, ticket, 0), *next);
    }
    tiles_ += uint32_t(tiles);
    return more;
  }

  // Where a tile's two halves stand, in the sequence and in the tensor; what does not exist is
  // beyond the tensor's end, from where zeros come.
  struct Tile {
    int first[2] = {0, 0}, token[2] = {0, 0};
  };
  __device__ Tile next_tile(const Item& item, Blocks& list, bool half) const {
    Tile tile;
    tile.first[0] = list.next() * p_.block_size;
    if (p_.block_size == kTileKeys) {
      tile.first[1] = tile.first[0] + kPageKeys;
      if (split_ && tile.first[1] >= item.keys) tile.first[1] = kNever;
    } else {
      tile.first[1] = half ? kNever : list.next() * p_.block_size;
    }
    tile.token[0] = token_of(item, tile.first[0]);
    tile.token[1] = split_ ? token_of(item, tile.first[1]) : tile.token[0] + kPageKeys;
    return tile;
  }

  // The queries, for each warpgroup as soon as it has done with the last item's, and what it must
  // know. Both have read the record of the item before the last by then.
  __device__ void publish(const Item& item, int tiles, int masked, int first) {
    const bool fast = tiles > 0 && !item.exact;
    wait_for_queries(0);
    if (leader_) {
      ItemRecord record;
      record.tiles = tiles;
      record.masked = masked;
      record.row = item.row;
      record.queries = item.queries;
      record.keys = item.keys;
      record.query_token = item.query_token;
      record.head = item.head;
      const int left = item.keys - first;
      record.tail = left < p_.block_size ? left : 0;
      record.exact = item.exact;
      record.pending = int(remembered_);
      shared_.item(items_) = record;
      if (fast) remember(item, tiles);
    }
    copy_queries(item, tiles, 0);
    wait_for_queries(1);
    copy_queries(item, tiles, 1);
    remembered_ += fast;
    ++items_;
  }
  __device__ void copy_queries(const Item& item, int tiles, int group) const {
    if (!leader_) return;
    const uint32_t full = shared_.full_queries(group);
    if (tiles == 0) {
      arrive(full);
      return;
    }
    expect_bytes(full, S::kGroupBytes);
    copy_tile_once(shared_.queries(group), &maps_.q,
                   item.query_token + item.row + group * kGroupRows, 0, item.head, full);
  }
  __device__ void wait_for_queries(int group) const {
    if (items_ > 0) wait_barrier(shared_.empty_queries(group), (items_ - 1u) & 1u);
  }

  __device__ void copy_keys(const Item& item, uint32_t n, const Tile& tile) const {
    if (n >= S::kStages) wait_barrier(shared_.empty_keys(n), shared_.phase(n) ^ 1u);
    if (!leader_) return;
    shared_.tile(n) = TileRecord{{tile.first[0], tile.first[1]}};
    const uint32_t to = shared_.keys(n), full = shared_.full_keys(n);
    const int head = head_of(item);
    expect_bytes(full, S::kTileBytes);
    if (!split_) {
      copy_tile(to, &maps_.k, tile.token[0], 0, head, full);
      return;
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int half = 0; half < S::kHalves; ++half) {
        copy_tile(to + uint32_t(half * kTileKeys + i * kPageKeys) * kRowBytes, &maps_.k,
                  tile.token[i], half, head, full);
      }
    }
  }
  __device__ void copy_values(const Item& item, uint32_t n, const int (&token)[2]) const {
    if (n >= S::kStages) wait_barrier(shared_.empty_values(n), shared_.phase(n) ^ 1u);
    if (!leader_) return;
    const uint32_t full = shared_.full_values(n);
    const int in_page = p_.block_table != nullptr ? kPageKeys : 0;  // after the keys
    expect_bytes(full, S::kTileBytes);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      copy_tile(shared_.values(n) + uint32_t(i) * (S::kTileBytes / 2), &maps_.v, token[i] + in_page,
                0, head_of(item), full);
    }
  }
  __device__ int head_of(const Item& item) const {
    return p_.block_table != nullptr ? 0 : item.kv_head;
  }
  __device__ int token_of(const Item& item, int first) const {
    if (first == kNever) return kNever;
    if (p_.block_table == nullptr) return item.key_token + first;
    const int64_t row = int64_t(item.sequence) * p_.kv_heads + item.kv_head;
    const int page = p_.block_table[row * p_.max_blocks + first / kPageKeys];
    return page < 0 ? kNever : page * 2 * kPageKeys;
  }

  // Items that the computing warps have not finished, or have and found too large for the fast way;
  // those whose tiles are all among the first `used` are finished.
  __device__ void remember(const Item& item, int tiles) const {
    volatile PendingItem& pending = shared_.pending(remembered_);
    pending.ticket = item.ticket;
    pending.end = tiles_ + uint32_t(tiles);
    pending.overflow = 0;
  }
  __device__ void redo_overflowed(uint32_t used) {
    __syncwarp();
    while (checked_ != remembered_) {
      const volatile PendingItem& pending = shared_.pending(checked_);
      if (int(pending.end - used) > 0) break;
      const int ticket = pending.ticket;
      const bool overflow = pending.overflow != 0;
      ++checked_;
      __syncwarp();
      Item item;
      if (overflow && schedule_.find(ticket, item)) {
        item.exact = true;
        issue(item, nullptr);
      }
    }
  }
  // Until the values of tiles before n are used.
  __device__ void wait_for_values(uint32_t n) const {
    for (uint32_t i = n - min(n, uint32_t(S::kStages)); i != n; ++i)
      wait_barrier(shared_.empty_values(i), shared_.phase(i));
  }

  const ForwardParams& p_;
  const ForwardMaps& maps_;
  const ForwardShared<S> shared_;
  Schedule schedule_;
  const bool split_, leader_;
  uint32_t tiles_ = 0, items_ = 0;         // so far
  uint32_t remembered_ = 0, checked_ = 0;  // of the items that are no repetitions
};

}  // namespace longspur::kernels::block_sparse::cuda
