// Cuts a batch into tiles, hands them to the team, and merges split results.
//
// A sequence with few query rows (decode) is split over its keys in pieces of kSplitBlocks blocks;
// one with many is cut into query tiles that each see all of their keys, or under a mask those of
// one row of it. The cuts depend on the sequence alone, never on the batch or the team, so its
// result does not either.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/error.h"
#include "base/shape.h"
#include "kernels/attention/nvfp4_page.h"
#include "kernels/attention/paged.h"
#include "kernels/attention/tile.h"

namespace longspur::kernels::attention {

namespace {

constexpr int64_t kSplitBlocks = 8;
constexpr int64_t kAlign = 64;

int64_t element_bytes(KvType type) {
  return type == KvType::kF32 ? 4 : 2;
}  // of a page as the tile reads it

// What decides the cuts of a batch.
struct Batch {
  const BatchShape& shape;
  int64_t heads, kv_heads, window;
  const PagedMask* mask;  // or null
  int64_t group() const { return heads / kv_heads; }
};

// How one sequence is cut.
struct Cut {
  int64_t tokens, kv_len;  // queries; keys with them
  int64_t heads_a_tile;    // of one KV head's group
  int64_t chunks;          // tiles that a group's heads take
  int64_t tokens_a_tile, tiles;
  int64_t tiles_a_block;   // under a mask: of a query block; 0: no mask
  int64_t blocks, splits;  // splits > 1: partial results
  int64_t items(int64_t kv_heads) const { return kv_heads * chunks * tiles * splits; }
  bool split() const { return splits > 1; }
  bool masked() const { return tiles_a_block > 0; }
  int64_t first_position() const { return kv_len - tokens; }

  // Tokens of a tile. Under a mask they keep to one query block; a tile of the first or last block
  // may have none.
  struct Range {
    int64_t begin, end;
  };
  Range tokens_of(int64_t tile) const {
    if (!masked())
      return {tile * tokens_a_tile, std::min(tile * tokens_a_tile + tokens_a_tile, tokens)};
    const int64_t block_begin =
        (first_position() / kQueryBlock + tile / tiles_a_block) * kQueryBlock - first_position();
    const int64_t begin = block_begin + tile % tiles_a_block * tokens_a_tile;
    return {std::max<int64_t>(begin, 0),
            std::min({begin + tokens_a_tile, block_begin + kQueryBlock, tokens})};
  }
};

Cut cut_of(const Batch& batch, int64_t b) {
  Cut cut{};
  cut.tokens = batch.shape.cu_seqlens[b + 1] - batch.shape.cu_seqlens[b];
  cut.kv_len = batch.shape.kv_lens[b];
  if (cut.tokens == 0) return cut;
  const int64_t group = batch.group();
  const bool masked = is_masked(batch.mask, batch.shape, b);
  cut.heads_a_tile = std::min<int64_t>(group, kMaxRows);
  if (masked && batch.mask->blocks.heads > batch.kv_heads) cut.heads_a_tile = 1;
  cut.chunks = ceil_div(group, cut.heads_a_tile);
  cut.tokens_a_tile = kMaxRows / cut.heads_a_tile;
  cut.splits = 1;
  if (masked) {
    cut.tiles_a_block = ceil_div(kQueryBlock, cut.tokens_a_tile);
    cut.tiles = ((cut.kv_len - 1) / kQueryBlock - cut.first_position() / kQueryBlock + 1) *
                cut.tiles_a_block;
    return cut;
  }
  cut.tiles = ceil_div(cut.tokens, cut.tokens_a_tile);
  const int64_t first_key =
      batch.window > 0 ? std::max<int64_t>(0, cut.first_position() + 1 - batch.window) : 0;
  cut.blocks = ceil_div(cut.kv_len, kPageTokens) - first_key / kPageTokens;
  if (cut.tiles == 1) cut.splits = ceil_div(cut.blocks, kSplitBlocks);
  return cut;
}

int64_t partial_floats(const Cut& cut, int64_t kv_heads, int64_t dp) {
  return cut.split() ? cut.items(kv_heads) * cut.tokens * cut.heads_a_tile * (dp + 2) : 0;
}

struct ScratchLayout {
  int64_t s, p, q, o, page, total;  // byte offsets in one thread's part
};
ScratchLayout scratch_layout(KvType type, int64_t d) {
  ScratchLayout layout{};
  const auto take = [&](int64_t bytes) {
    const int64_t at = layout.total;
    layout.total += round_up(bytes, kAlign);
    return at;
  };
  layout.s = take(kMaxRows * kPageTokens * 4);
  layout.p = take(kMaxRows * kPageTokens * element_bytes(type));
  layout.q = take(kMaxRows * d * element_bytes(type));
  layout.o = take(kMaxRows * padded_dim(d) * 4);
  layout.page = take(type == KvType::kNVFP4 ? page_bytes(KvType::kBF16, d) : 0);
  layout.total += kAlign * 2;  // keeps neighbours' lines apart
  return layout;
}

int64_t all_partials(const Batch& batch, int64_t head_dim) {
  int64_t floats = 0;
  for (int64_t b = 0; b < batch.shape.batch; ++b)
    floats += partial_floats(cut_of(batch, b), batch.kv_heads, padded_dim(head_dim));
  return floats;
}

// Where the means of the blocks of masked sequences lie: for each KV head of each of them, pages of
// 64 means.
struct MeansLayout {
  int64_t blocks, pages, bytes;  // of one KV head

  MeansLayout(const Batch& batch, const PagedKv& kv, int64_t b) : blocks(0) {
    const bool wanted = is_masked(batch.mask, batch.shape, b) && batch.mask->mean_correction;
    // The last query block sees in full what ends where it begins.
    if (wanted)
      blocks =
          (batch.shape.kv_lens[b] - 1) / kQueryBlock * kQueryBlock / batch.mask->blocks.block_size;
    pages = ceil_div(blocks, int64_t{kPageTokens});
    bytes = pages * page_bytes(kv);
  }
  static int64_t page_bytes(const PagedKv& kv) {
    const KvType type = kv.type == KvType::kF32 ? KvType::kF32 : KvType::kBF16;
    return attention::page_bytes(type, kv.head_dim);
  }
};

int64_t all_means(const Batch& batch, const PagedKv& kv, int64_t end) {
  int64_t bytes = 0;
  for (int64_t b = 0; b < end; ++b) bytes += kv.kv_heads * MeansLayout(batch, kv, b).bytes;
  return bytes;
}

class Run {
 public:
  Run(const AttentionArgs& args,
      const BatchShape& shape,
      const PagedKv& kv,
      std::byte* workspace,
      const PagedMask* mask,
      int threads)
      : args_(args),
        shape_(shape),
        kv_(kv),
        batch_{shape, args.heads, kv.kv_heads, args.window, mask},
        group_(args.heads / kv.kv_heads),
        dp_(padded_dim(kv.head_dim)),
        team_size_(threads),
        partials_(reinterpret_cast<float*>(workspace)),
        layout_(scratch_layout(kv.type, kv.head_dim)) {
    for (int64_t b = 0; b < shape.batch; ++b) items_ += cut_of(batch_, b).items(kv.kv_heads);
    const int64_t floats = all_partials(batch_, kv.head_dim);
    any_split_ = floats > 0;
    means_ = workspace + round_up(floats * int64_t(sizeof(float)), kAlign);
    for (int64_t b = 0; b < shape.batch; ++b)
      mean_units_ += kv.kv_heads * MeansLayout(batch_, kv, b).pages * kUnitsAPage;
    threads_ = means_ + all_means(batch_, kv, shape.batch);
  }

  // Pieces of the pages of means; all are done before the first item that reads them.
  int64_t mean_units() const { return mean_units_; }
  void means_unit(int64_t unit, int rank) const {
    int64_t b = 0;
    for (;; ++b) {
      const int64_t own = kv_.kv_heads * MeansLayout(batch_, kv_, b).pages * kUnitsAPage;
      if (unit < own) break;
      unit -= own;
    }
    const MeansLayout layout(batch_, kv_, b);
    const int64_t piece = unit % kUnitsAPage, page = unit / kUnitsAPage % layout.pages;
    const int64_t kv_head = unit / kUnitsAPage / layout.pages;
    const int64_t first = page * kPageTokens + piece * kPageTokens / kUnitsAPage;
    const MeansUnit means{first, first + kPageTokens / kUnitsAPage, layout.blocks,
                          batch_.mask->blocks.block_size / kPageTokens,
                          means_of(b, kv_head) + page * MeansLayout::page_bytes(kv_)};
    const KernelTable& table = active_table();
    (kv_.type == KvType::kF32 ? table.means_f32 : table.means_bf16)(
        make_tile(b, cut_of(batch_, b), kv_head, 0, {0, 1}), means, scratch_of(rank));
  }

  int64_t items() const { return items_; }
  bool any_split() const { return any_split_; }

  void attend_item(int64_t item, int rank) const {
    int64_t b = 0, offset = 0;
    Cut cut = cut_of(batch_, 0);
    while (item >= cut.items(kv_.kv_heads)) {
      item -= cut.items(kv_.kv_heads);
      offset += partial_floats(cut, kv_.kv_heads, dp_);
      cut = cut_of(batch_, ++b);
    }
    // Late tiles see the most keys: they go first, so that no thread is left with a long one.
    const int64_t split = item % cut.splits, piece = item / cut.splits;
    const int64_t head_piece = piece % (kv_.kv_heads * cut.chunks);
    const int64_t tile_index = cut.tiles - 1 - piece / (kv_.kv_heads * cut.chunks);
    const int64_t kv_head = head_piece / cut.chunks, chunk = head_piece % cut.chunks;

    const Cut::Range tokens = cut.tokens_of(tile_index);
    if (tokens.begin >= tokens.end) return;
    Tile tile = make_tile(b, cut, kv_head, chunk, tokens);
    if (cut.split()) {
      tile.first_block += split * kSplitBlocks;
      // Pieces go to the threads in turns.
      const int64_t later = tile.first_block + team_size_ * kSplitBlocks;
      tile.later_block = later < tile.end_block ? later : -1;
      tile.end_block = std::min(tile.end_block, tile.first_block + kSplitBlocks);
      tile.partial = partials_ + offset + item * cut.tokens * cut.heads_a_tile * (dp_ + 2);
    }
    const KernelTable& table = active_table();
    (kv_.type == KvType::kF32 ? table.attend_f32 : table.attend_bf16)(tile, scratch_of(rank));
  }

  // Merges the splits of (sequence, KV head) pairs.
  void merge(int64_t b, int64_t kv_head) const {
    int64_t offset = 0;
    for (int64_t i = 0; i < b; ++i) offset += partial_floats(cut_of(batch_, i), kv_.kv_heads, dp_);
    const Cut cut = cut_of(batch_, b);
    if (!cut.split()) return;
    for (int64_t chunk = 0; chunk < cut.chunks; ++chunk) {
      const int64_t heads = chunk_heads(cut, chunk),
                    stride = cut.tokens * cut.heads_a_tile * (dp_ + 2);
      const float* first =
          partials_ + offset + (kv_head * cut.chunks + chunk) * cut.splits * stride;
      for (int64_t row = 0; row < cut.tokens * heads; ++row) {
        const int64_t head = kv_head * group_ + chunk * cut.heads_a_tile + row % heads;
        const int64_t token = shape_.cu_seqlens[b] + row / heads;
        float* lse = args_.lse == nullptr ? nullptr : args_.lse + token * args_.heads + head;
        merge_row(first + row * (dp_ + 2), stride, cut.splits,
                  args_.out + token * args_.ldo + head * kv_.head_dim, lse);
      }
    }
  }

  bool stores_late() const {
    if (kv_.type != KvType::kNVFP4) return false;
    for (int64_t b = 0; b < shape_.batch; ++b) {
      if (stored_late(first_position(b), shape_.kv_lens[b])) return true;
    }
    return false;
  }

  // Rows of the newest block that rope_append could not store, since attention had to read what its
  // bf16 pages held.
  void store_late(int64_t b, int64_t kv_head) const {
    const int64_t kv_len = shape_.kv_lens[b], tokens = kv_len % kPageTokens;
    if (!stored_late(first_position(b), kv_len)) return;
    store_rows(newest_quarters(kv_.pool, page_bytes(kv_.type, kv_.head_dim), side_of(b, kv_head)),
               0, tokens, kv_.head_dim, fresh_rows(shape_.cu_seqlens[b + 1] - tokens, kv_head));
  }

 private:
  static constexpr int64_t kUnitsAPage = 8;  // pieces of a page of means

  TileScratch scratch_of(int rank) const {
    std::byte* own = threads_ + rank * layout_.total;
    return {reinterpret_cast<float*>(own + layout_.s), own + layout_.p, own + layout_.q,
            reinterpret_cast<float*>(own + layout_.o), own + layout_.page};
  }

  std::byte* means_of(int64_t b, int64_t kv_head) const {
    return means_ + all_means(batch_, kv_, b) + kv_head * MeansLayout(batch_, kv_, b).bytes;
  }

  int64_t first_position(int64_t b) const {
    return shape_.kv_lens[b] - (shape_.cu_seqlens[b + 1] - shape_.cu_seqlens[b]);
  }
  const int32_t* side_of(int64_t b, int64_t kv_head) const {
    return kv_.block_table + (b * kv_.kv_heads + kv_head + 1) * kv_.max_blocks - kSideBlocks;
  }
  KvRows fresh_rows(int64_t row, int64_t kv_head) const {
    const float* keys = args_.q + row * args_.ldq + (args_.heads + kv_head) * kv_.head_dim;
    return {keys, keys + kv_.kv_heads * kv_.head_dim, args_.ldq};
  }

  int64_t chunk_heads(const Cut& cut, int64_t chunk) const {
    return std::min(cut.heads_a_tile, group_ - chunk * cut.heads_a_tile);
  }

  Tile make_tile(
      int64_t b, const Cut& cut, int64_t kv_head, int64_t chunk, Cut::Range tokens) const {
    const int64_t row = shape_.cu_seqlens[b] + tokens.begin;
    const int64_t head = kv_head * group_ + chunk * cut.heads_a_tile;
    Tile tile{};
    tile.q = args_.q + row * args_.ldq + head * kv_.head_dim;
    tile.ldq = args_.ldq;
    tile.tokens = tokens.end - tokens.begin;
    tile.group = chunk_heads(cut, chunk);
    tile.first_position = cut.first_position() + tokens.begin;
    tile.head_dim = kv_.head_dim;
    tile.scale = args_.scale;
    tile.window = args_.window;
    tile.pool = kv_.pool;
    tile.page_bytes = page_bytes(kv_.type, kv_.head_dim);
    tile.pages = kv_.block_table + (b * kv_.kv_heads + kv_head) * kv_.max_blocks;
    tile.type = kv_.type;
    if (kv_.type == KvType::kNVFP4)
      set_nvfp4(tile, kv_, shape_, args_.q, args_.ldq, args_.heads, b, kv_head);
    const int64_t first_key =
        args_.window > 0 ? std::max<int64_t>(0, tile.first_position + 1 - args_.window) : 0;
    tile.first_block = first_key / kPageTokens;
    tile.end_block = (tile.first_position + tile.tokens - 1) / kPageTokens + 1;
    tile.later_block = -1;
    if (cut.masked()) set_mask(tile, b, cut, kv_head, head);
    tile.out = args_.out + row * args_.ldo + head * kv_.head_dim;
    tile.ldo = args_.ldo;
    tile.lse = args_.lse == nullptr ? nullptr : args_.lse + row * args_.heads + head;
    tile.lse_stride = args_.heads;
    return tile;
  }

  void set_mask(Tile& tile, int64_t b, const Cut& cut, int64_t kv_head, int64_t head) const {
    const BlockMask& mask = batch_.mask->blocks;
    const int64_t query_block = tile.first_position / kQueryBlock;
    tile.listed = mask.row(b, head * mask.heads / args_.heads,
                           query_block - cut.first_position() / kQueryBlock);
    tile.pages_a_bit = mask.block_size / kPageTokens;
    if (!batch_.mask->mean_correction) return;
    tile.means = means_of(b, kv_head);
    tile.mean_page_bytes = MeansLayout::page_bytes(kv_);
    tile.mean_end = query_block * kQueryBlock / mask.block_size;
    // With a window the last row of the query block sees the fewest old keys.
    const int64_t first_key = (query_block + 1) * kQueryBlock - args_.window;
    tile.mean_begin = args_.window > 0 && first_key > 0 ? ceil_div(first_key, mask.block_size) : 0;
    tile.mean_offset = std::log2(float(mask.block_size));
  }

  void merge_row(const float* first, int64_t stride, int64_t splits, float* out, float* lse) const {
    float m = -INFINITY, l = 0.0f;
    for (int64_t s = 0; s < splits; ++s) m = std::max(m, first[s * stride + dp_]);
    std::memset(out, 0, size_t(kv_.head_dim) * sizeof(float));
    for (int64_t s = 0; s < splits; ++s) {
      const float* partial = first + s * stride;
      if (partial[dp_ + 1] <= 0.0f) continue;
      const float weight = std::exp2(partial[dp_] - m);
      l += weight * partial[dp_ + 1];
      for (int64_t i = 0; i < kv_.head_dim; ++i) out[i] += weight * partial[i];
    }
    const float inverse = l > 0.0f ? 1.0f / l : 0.0f;
    for (int64_t i = 0; i < kv_.head_dim; ++i) out[i] *= inverse;
    if (lse != nullptr) *lse = natural_lse(m, l);
  }

  const AttentionArgs& args_;
  const BatchShape& shape_;
  const PagedKv& kv_;
  Batch batch_;
  int64_t group_, dp_, team_size_;
  float* partials_;
  std::byte *means_ = nullptr, *threads_ = nullptr;
  ScratchLayout layout_;
  int64_t items_ = 0, mean_units_ = 0;
  bool any_split_ = false;
};

}  // namespace

int64_t page_bytes(KvType type, int64_t head_dim) {
  if (type == KvType::kNVFP4) return nvfp4_page_bytes(head_dim);
  return round_up(kPageTokens * (head_dim + padded_dim(head_dim)) * element_bytes(type), kAlign);
}

int64_t workspace_bytes(
    const BatchShape& shape, int64_t heads, const PagedKv& kv, int threads, const PagedMask* mask) {
  // Without a window and a mask there are the most splits.
  const int64_t floats = all_partials({shape, heads, kv.kv_heads, 0, nullptr}, kv.head_dim);
  return round_up(floats * int64_t(sizeof(float)), kAlign) +
         all_means({shape, heads, kv.kv_heads, 0, mask}, kv, shape.batch) +
         threads * scratch_layout(kv.type, kv.head_dim).total + kAlign;
}

void paged_attention(Team& team,
                     const AttentionArgs& args,
                     const BatchShape& shape,
                     const PagedKv& kv,
                     std::byte* workspace,
                     const PagedMask* mask) {
  const Run run(args, shape, kv, workspace, mask, team.size());
  if (run.mean_units() > 0) {
    team.dynamic_for(run.mean_units(), 1,
                     [&](int64_t unit, int64_t) { run.means_unit(unit, team.rank()); });
  }
  team.dynamic_for(run.items(), 1,
                   [&](int64_t begin, int64_t) { run.attend_item(begin, team.rank()); });
  const bool late = run.stores_late();
  if (!run.any_split() && !late) return;
  team.dynamic_for(shape.batch * kv.kv_heads, 1, [&](int64_t i, int64_t) {
    run.merge(i / kv.kv_heads, i % kv.kv_heads);
    if (late) run.store_late(i / kv.kv_heads, i % kv.kv_heads);
  });
}

void rope_append(Team& team,
                 const RopeAppendArgs& args,
                 const BatchShape& shape,
                 const PagedKv& kv) {
  // Work is cut at block borders: the tokens of one page are written by one thread.
  const auto first_position = [&](int64_t b) {
    return shape.kv_lens[b] - (shape.cu_seqlens[b + 1] - shape.cu_seqlens[b]);
  };
  const auto units_of = [&](int64_t b) -> int64_t {
    if (shape.cu_seqlens[b + 1] == shape.cu_seqlens[b]) return 0;
    return (shape.kv_lens[b] - 1) / kPageTokens - first_position(b) / kPageTokens + 1;
  };
  int64_t units = 0;
  for (int64_t b = 0; b < shape.batch; ++b) units += units_of(b);
  const auto append_unit = [&](int64_t b, int64_t unit) {
    const int64_t start = first_position(b), block = start / kPageTokens + unit;
    const int64_t begin = std::max(start, block * kPageTokens);
    const int64_t end = std::min<int64_t>(shape.kv_lens[b], (block + 1) * kPageTokens);
    AppendUnit piece{};
    piece.args = &args;
    piece.rows = args.qkv + (shape.cu_seqlens[b] + begin - start) * args.ld;
    piece.tokens = end - begin;
    piece.position = begin;
    piece.head_dim = kv.head_dim;
    piece.kv_heads = kv.kv_heads;
    piece.type = kv.type;
    piece.pool = kv.pool;
    piece.page_bytes = page_bytes(kv.type, kv.head_dim);
    const int32_t* row = kv.block_table + b * kv.kv_heads * kv.max_blocks;
    piece.pages = row + block;
    piece.side = row + kv.max_blocks - side_blocks(kv.type);
    piece.max_blocks = kv.max_blocks;
    piece.later = kv.type == KvType::kNVFP4 && stored_late(start, shape.kv_lens[b]);
    active_table().append(piece);
  };
  team.dynamic_for(units, 1, [&](int64_t unit, int64_t) {
    int64_t b = 0;
    for (; unit >= units_of(b); ++b) unit -= units_of(b);
    append_unit(b, unit);
  });
}

}  // namespace longspur::kernels::attention
