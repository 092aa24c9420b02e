#include "kernels/xattn/paged.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <vector>

#include "base/shape.h"
#include "kernels/attention/nvfp4_page.h"
#include "kernels/attention/tile.h"
#include "kernels/xattn/score_item.h"

namespace longspur::kernels::xattn {

namespace {

using attention::kBlockKeys;
using attention::kPageTokens;
using attention::KvType;

constexpr int64_t kAlign = 64;
constexpr int64_t kPackedKeys = 64 * kPageTokens;  // of an item of the first phase
constexpr float kDense = 2.0f;                     // thresholds from here on keep every block

// One sequence: its rows are the last of its tokens.
struct Sequence {
  int64_t row = 0, rows = 0;  // of q
  int64_t tokens = 0;         // with the rows
  int64_t start() const { return tokens - rows; }
  int64_t first_block() const { return start() / kQueryBlock; }
  int64_t blocks() const { return rows == 0 ? 0 : ceil_div(tokens, kQueryBlock) - first_block(); }
};

Sequence sequence_of(const attention::BatchShape& shape, int64_t b) {
  return {shape.cu_seqlens[b], shape.cu_seqlens[b + 1] - shape.cu_seqlens[b], shape.kv_lens[b]};
}

float bf16_low(uint32_t word) { return std::bit_cast<float>(word << 16); }
float bf16_high(uint32_t word) { return std::bit_cast<float>(word & 0xffff0000u); }

class Plan {
 public:
  Plan(const PagedSelectArgs& args,
       const attention::BatchShape& shape,
       const attention::PagedKv& kv)
      : args_(args), shape_(shape), kv_(kv), offsets_{0} {
    setup_.estimator = args.estimator;
    setup_.block_size = args.options.block_size;
    setup_.scale = double(args.scale);
    setup_.head_dim = kv.head_dim;
    setup_.pairs = kv.type != KvType::kF32;
    group_ = args.heads / kv.kv_heads;
    mask_rows_ = args.mask_heads / kv.kv_heads;
    for (int64_t b = 0; b < shape.batch; ++b) {
      const Sequence sequence = sequence_of(shape, b);
      const int64_t keys = sequence.rows == 0 ? 0 : sequence.tokens;
      longest_k_ = std::max(longest_k_, keys);
      offsets_.push_back(offsets_.back() + KeyLayout(setup_, keys, false).bytes * kv.kv_heads);
      const bool packs = offsets_.back() > offsets_[size_t(b)];
      pack_items_.push_back(packs ? ceil_div(keys, kPackedKeys) * kv.kv_heads : 0);
    }
    row_blocks_ = ceil_div(longest_k_, setup_.block_size);
    score_bytes_ = score_scratch_bytes(setup_, longest_k_);
    page_bytes_ = kv.type == KvType::kNVFP4 ? attention::page_bytes(KvType::kBF16, kv.head_dim) : 0;
    scratch_bytes_ =
        round_up(score_bytes_ + page_bytes_ + float_bytes(mask_rows_ * row_blocks_), kAlign) +
        2 * kAlign;
  }

  int64_t workspace_bytes(int threads) const {
    return round_up(offsets_.back(), kAlign) + threads * scratch_bytes_;
  }

  void run(Team& team, std::byte* workspace) const {
    std::byte* scratch =
        workspace + round_up(offsets_.back(), kAlign) + team.rank() * scratch_bytes_;
    int64_t packs = 0;
    for (const int64_t items : pack_items_) packs += items;
    if (packs > 0) {
      team.dynamic_for(packs, 1, [&](int64_t item, int64_t) { pack(item, scratch, workspace); });
    }
    team.dynamic_for(shape_.batch * kv_.kv_heads * args_.query_blocks, 1,
                     [&](int64_t item, int64_t) { select_item(item, scratch, workspace); });
  }

 private:
  static int64_t float_bytes(int64_t n) { return round_up(n * int64_t(sizeof(float)), kAlign); }
  std::byte* opened_page(std::byte* scratch) const { return scratch + score_bytes_; }
  float* score_rows(std::byte* scratch) const {
    return reinterpret_cast<float*>(scratch + score_bytes_ + page_bytes_);
  }

  // --- keys ---

  attention::Tile key_tile(int64_t b, int64_t kv_head) const {
    attention::Tile tile{};
    const int64_t tokens = sequence_of(shape_, b).tokens;
    tile.head_dim = kv_.head_dim;
    tile.pool = kv_.pool;
    tile.page_bytes = attention::page_bytes(kv_.type, kv_.head_dim);
    tile.pages = kv_.block_table + (b * kv_.kv_heads + kv_head) * kv_.max_blocks;
    tile.type = kv_.type;
    tile.tokens = tokens;  // of the sequence: a block is opened as far as it goes
    if (kv_.type == KvType::kNVFP4)
      attention::set_nvfp4(tile, kv_, shape_, args_.q, args_.ldq, args_.heads, b, kv_head);
    return tile;
  }
  // Pages as blocks of keys; the tile must outlive them.
  attention::KeyBlocks pages_of(const attention::Tile& tile, std::byte* opened) const {
    const bool packed = kv_.type == KvType::kNVFP4;
    return {tile.pool, tile.page_bytes, tile.pages, packed ? &tile : nullptr, opened};
  }

  void pack(int64_t item, std::byte* scratch, std::byte* workspace) const {
    int64_t b = 0;
    for (; item >= pack_items_[size_t(b)]; ++b) item -= pack_items_[size_t(b)];
    const int64_t kv_head = item % kv_.kv_heads, first = item / kv_.kv_heads * kPackedKeys;
    const Sequence sequence = sequence_of(shape_, b);
    const int64_t end = std::min(sequence.tokens, first + kPackedKeys);
    const KeyLayout layout(setup_, sequence.tokens, false);
    std::byte* base = workspace + offsets_[size_t(b)] + kv_head * layout.bytes;
    const attention::Tile tile = key_tile(b, kv_head);
    const attention::KeyBlocks pages = pages_of(tile, opened_page(scratch));
    if (layout.has_means) {
      for (int64_t j = first / setup_.block_size; j * setup_.block_size < end; ++j)
        block_mean(
            sequence, pages, j, reinterpret_cast<float*>(scratch),
            reinterpret_cast<float*>(base + layout.means + j / kBlockKeys * layout.mean_bytes) +
                j % kBlockKeys);
    }
    for (size_t t = 0; t < setup_.estimator.terms.size(); ++t) {
      if (!layout.owns_keys(t)) continue;
      const int64_t size = setup_.estimator.terms[t].size;
      for (int64_t j = first / size / kBlockKeys; j * kBlockKeys * size < end; ++j)
        stride_keys(
            sequence, pages, size, j,
            reinterpret_cast<uint32_t*>(base + layout.strided[t] + j * size * layout.exact_bytes));
    }
  }

  // The mean of the keys of a page that exist.
  void page_mean(const attention::KeyBlocks& pages, int64_t page, int64_t count, float* to) const {
    const auto* words =
        reinterpret_cast<const uint32_t*>(attention::active_table().scores.open(pages, page));
    const int64_t d = kv_.head_dim;
    std::fill_n(to, d, 0.0f);
    for (int64_t w = 0; w < setup_.words(); ++w, words += kPageTokens) {
      if (!setup_.pairs) {
        for (int64_t t = 0; t < count; ++t) to[w] += std::bit_cast<float>(words[t]);
        continue;
      }
      for (int64_t t = 0; t < count; ++t) {
        to[2 * w] += bf16_low(words[t]);
        to[2 * w + 1] += bf16_high(words[t]);
      }
    }
    for (int64_t i = 0; i < d; ++i) to[i] /= float(count);
  }

  // The mean of key block j into its column of [D, 64].
  void block_mean(const Sequence& sequence,
                  const attention::KeyBlocks& pages,
                  int64_t j,
                  float* scratch,
                  float* column) const {
    const int64_t d = kv_.head_dim, first = j * setup_.block_size;
    const int64_t end = std::min(first + setup_.block_size, sequence.tokens);
    for (int64_t begin = first; begin < end; begin += kPageTokens) {
      const int64_t page = begin / kPageTokens, count = std::min<int64_t>(kPageTokens, end - begin);
      const bool full = count == kPageTokens && args_.key_means.means != nullptr;
      float* kept = full ? args_.key_means.means + pages.pages[page] * d : nullptr;
      const float* mean = kept;
      if (!full || begin + kPageTokens > sequence.start()) {
        page_mean(pages, page, count, scratch);
        if (full) std::memcpy(kept, scratch, size_t(d) * sizeof(float));
        mean = scratch;
      }
      const float share = float(count) / float(end - first);
      for (int64_t i = 0; i < d; ++i)
        column[i * kBlockKeys] = (begin == first ? 0.0f : column[i * kBlockKeys]) + share * mean[i];
    }
  }

  // Block j of columns of `size` keys: [size * words, 64].
  void stride_keys(const Sequence& sequence,
                   const attention::KeyBlocks& pages,
                   int64_t size,
                   int64_t j,
                   uint32_t* to) const {
    const int64_t words = setup_.words();
    for (int64_t page = j * size; page < (j + 1) * size; ++page) {
      const int64_t count =
          std::clamp<int64_t>(sequence.tokens - page * kPageTokens, 0, kPageTokens);
      const auto* from = count == 0 ? nullptr
                                    : reinterpret_cast<const uint32_t*>(
                                          attention::active_table().scores.open(pages, page));
      for (int64_t t = 0; t < kPageTokens; ++t) {
        const int64_t key = (page - j * size) * kPageTokens + t;
        uint32_t* at = to + key % size * words * kBlockKeys + key / size;
        for (int64_t w = 0; w < words; ++w)
          at[w * kBlockKeys] = t < count ? from[w * kPageTokens + t] : 0;
      }
    }
  }

  // --- selection ---

  // Query block `i` of sequence b, the heads of one KV head.
  void select_item(int64_t item, std::byte* scratch, std::byte* workspace) const {
    // Late blocks see the most keys: they go first, so that no thread is left with a long one.
    const int64_t i = args_.query_blocks - 1 - item / (shape_.batch * kv_.kv_heads);
    const int64_t b = item / kv_.kv_heads % shape_.batch, kv_head = item % kv_.kv_heads;
    const Sequence sequence = sequence_of(shape_, b);
    const int64_t head = kv_head * mask_rows_;
    const int64_t row = (b * args_.mask_heads + head) * args_.query_blocks + i;
    if (i < sequence.blocks()) {
      score(b, kv_head, sequence.first_block() + i, scratch, workspace);
      for (int64_t r = 0; r < mask_rows_; ++r)
        select_one(sequence, sequence.first_block() + i, head + r,
                   score_rows(scratch) + r * row_blocks_, row + r * args_.query_blocks);
      return;
    }
    for (int64_t r = 0; r < mask_rows_; ++r) {
      const int64_t at = row + r * args_.query_blocks;
      std::fill_n(args_.words + at * args_.row_words, args_.row_words, 0u);
      if (args_.stats != nullptr) args_.stats[at] = {};
      if (args_.reselected != nullptr) args_.reselected[at] = 0;
    }
  }

  void select_one(const Sequence& sequence,
                  int64_t block,
                  int64_t head,
                  const float* scores,
                  int64_t row) const {
    const int64_t n = sequence.tokens;  // as if no token had been in the cache before
    uint32_t* words = args_.words + row * args_.row_words;
    const auto run = [&](float threshold, const SelectOptions& options) {
      return select_row(scores, threshold, block, n, n, options, words, args_.row_words);
    };
    SelectOptions options = args_.options;
    RowStats stats;
    bool again = false;
    if (args_.threshold[head] >= kDense) {
      options.rule = Rule::kOfMax;
      stats = run(0.0f, options);  // scores are 0
    } else {
      stats = run(args_.threshold[head], options);
      options.rule = Rule::kShare;
      again = stats.kept_share < args_.least_share;
      if (again) stats = run(args_.least_share, options);
    }
    if (args_.reselected != nullptr) args_.reselected[row] = again ? 1 : 0;
    if (args_.stats != nullptr) args_.stats[row] = stats;
  }

  // Rows of scores of the heads that are not dense; zeros of those that are.
  void score(
      int64_t b, int64_t kv_head, int64_t block, std::byte* scratch, std::byte* workspace) const {
    float* rows = score_rows(scratch);
    std::fill_n(rows, mask_rows_ * row_blocks_, 0.0f);
    const Sequence sequence = sequence_of(shape_, b);
    const KeyLayout layout(setup_, sequence.tokens, false);
    const attention::Tile tile = key_tile(b, kv_head);
    ScoreItem item;
    item.q = {args_.q, args_.ldq, kv_.head_dim};
    item.q_begin = sequence.row;
    item.first = sequence.start();
    item.n = sequence.rows;
    item.m = sequence.tokens;
    item.block = block;
    item.exact = pages_of(tile, opened_page(scratch));
    layout.place(setup_, workspace + offsets_[size_t(b)] + kv_head * layout.bytes, item);
    const int64_t heads = group_ / mask_rows_;  // of a row
    item.factor = 1.0f / float(heads);
    item.out_stride = mask_rows_ == 1 ? 0 : row_blocks_;
    const auto dense = [&](int64_t r) {
      return args_.threshold[kv_head * mask_rows_ + r] >= kDense;
    };
    for (int64_t begin = 0, end = 0; begin < mask_rows_; begin = end) {
      while (end < mask_rows_ && dense(end) == dense(begin)) ++end;
      if (dense(begin)) continue;
      item.first_head = kv_head * group_ + begin * heads;
      item.heads = (end - begin) * heads;
      item.out = rows + begin * row_blocks_;
      if (args_.row_lse != nullptr)
        item.row_lse = args_.row_lse + sequence.row * args_.lse_stride + item.first_head;
      item.lse_stride = args_.lse_stride;
      score_item(setup_, item, longest_k_, scratch);
    }
  }

  const PagedSelectArgs& args_;
  const attention::BatchShape& shape_;
  const attention::PagedKv& kv_;
  ScoreSetup setup_;
  int64_t group_ = 0, mask_rows_ = 0;  // query heads and rows of a mask, of one KV head
  int64_t longest_k_ = 0, row_blocks_ = 0;
  std::vector<int64_t> offsets_;     // [B + 1], bytes of the workspace
  std::vector<int64_t> pack_items_;  // [B]
  int64_t score_bytes_ = 0, page_bytes_ = 0, scratch_bytes_ = 0;
};

}  // namespace

int64_t paged_query_blocks(const attention::BatchShape& shape) {
  int64_t blocks = 0;
  for (int64_t b = 0; b < shape.batch; ++b)
    blocks = std::max(blocks, sequence_of(shape, b).blocks());
  return blocks;
}

int64_t paged_select_workspace_bytes(const PagedSelectArgs& args,
                                     const attention::BatchShape& shape,
                                     const attention::PagedKv& kv,
                                     int threads) {
  return Plan(args, shape, kv).workspace_bytes(threads);
}

void paged_select(Team& team,
                  const PagedSelectArgs& args,
                  const attention::BatchShape& shape,
                  const attention::PagedKv& kv,
                  std::byte* workspace) {
  Plan(args, shape, kv).run(team, workspace);
}

}  // namespace longspur::kernels::xattn
