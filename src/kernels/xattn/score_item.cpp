#include "kernels/xattn/score_item.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "base/half.h"
#include "base/shape.h"
#include "kernels/attention/tile.h"
#include "kernels/common/block_mask.h"

namespace longspur::kernels::xattn {

namespace {

using attention::kBlockKeys;
using attention::kMaxRows;
using attention::padded_dim;

constexpr int64_t kAlign = 64;
constexpr int64_t kLoadedRows = kQueryBlock;

struct Scratch {
  uint32_t* rows;            // [kMaxRows, words of the widest row]
  float *top, *sum;          // [kMaxRows, stride]
  float *share, *share_sum;  // [stride]
  float* s;                  // [kMaxRows, kBlockKeys]
  float* loaded;             // [kLoadedRows, padded_dim]
  float *mean, *spread;      // [padded_dim]
  int64_t stride;
  int64_t bytes;
};

int64_t widest_row(const ScoreSetup& setup) {
  int64_t words = setup.head_dim;
  for (const EstimatorTerm& term : setup.estimator.terms)
    if (is_strided(term.term)) words = std::max(words, term.size * setup.words());
  return words;
}

Scratch carve(const ScoreSetup& setup, int64_t longest_k, std::byte* base) {
  Scratch scratch{};
  const auto take = [&](int64_t n) {
    std::byte* part = base == nullptr ? nullptr : base + scratch.bytes;
    scratch.bytes += round_up(n * int64_t(sizeof(float)), kAlign);
    return reinterpret_cast<float*>(part);
  };
  const int64_t dp = padded_dim(setup.head_dim);
  // segments of a row: 64 keys, or a block
  scratch.stride = round_up(ceil_div(longest_k, kBlockKeys) + kBlockKeys, kBlockKeys);
  scratch.rows = reinterpret_cast<uint32_t*>(take(kMaxRows * widest_row(setup)));
  scratch.top = take(kMaxRows * scratch.stride);
  scratch.sum = take(kMaxRows * scratch.stride);
  scratch.share = take(scratch.stride);
  scratch.share_sum = take(scratch.stride);
  scratch.s = take(kMaxRows * kBlockKeys);
  scratch.loaded = take(kLoadedRows * dp);
  scratch.mean = take(dp);
  scratch.spread = take(dp);
  return scratch;
}

// Rows against the same keys, computed some dozen at a time.
class RowBatch {
 public:
  struct Keys {
    attention::KeyBlocks blocks;
    bool pairs;
    int64_t words;
    int64_t segment;           // columns
    int64_t segments_a_block;  // of selection
    float factor;
  };
  RowBatch(const Keys& keys, const Scratch& scratch) : keys_(keys), scratch_(scratch) {}
  RowBatch(const RowBatch&) = delete;
  RowBatch& operator=(const RowBatch&) = delete;
  ~RowBatch() { flush(); }

  // Where the words of the row go that push() adds.
  uint32_t* next() { return scratch_.rows + count_ * keys_.words; }
  // `weight` of the row's shares goes to out, its log-sum-exp to lse unless that is null.
  void push(int64_t visible, float bias, float weight, float* out, float* lse = nullptr) {
    visible_[count_] = visible;
    bias_[count_] = bias;
    weight_[count_] = weight;
    out_[count_] = out;
    lse_[count_] = lse;
    if (++count_ == kMaxRows) flush();
  }

 private:
  void flush() {
    if (count_ == 0) return;
    const attention::ScoreTable& table = attention::active_table().scores;
    attention::ScoreTile tile;
    tile.rows = scratch_.rows;
    tile.count = count_;
    tile.words = keys_.words;
    tile.visible = visible_;
    tile.bias =
        std::any_of(bias_, bias_ + count_, [](float x) { return x != 0.0f; }) ? bias_ : nullptr;
    tile.factor = keys_.factor;
    tile.keys = keys_.blocks;
    tile.end_block = ceil_div(*std::max_element(visible_, visible_ + count_), kBlockKeys);
    tile.segment = keys_.segment;
    tile.top = scratch_.top;
    tile.sum = scratch_.sum;
    tile.stride = scratch_.stride;
    tile.s = scratch_.s;
    (keys_.pairs ? table.pairs : table.floats)(tile);
    for (int64_t r = 0; r < count_; ++r) {
      const int64_t segments = ceil_div(visible_[r], keys_.segment);
      const attention::RowMass mass = table.shares(
          tile.top + r * tile.stride, tile.sum + r * tile.stride, segments, scratch_.share);
      if (lse_[r] != nullptr) *lse_[r] = (mass.top + std::log2(mass.sum)) / attention::kLog2E;
      add(segments, weight_[r]);
      if (r + 1 == count_ || out_[r + 1] != out_[r]) add_to(out_[r]);
    }
    count_ = 0;
  }

  // Rows of one result are added up apart from it: fewer roundings of a sum that is near 1.
  void add(int64_t segments, float weight) {
    float* __restrict sum = scratch_.share_sum;
    const float* __restrict share = scratch_.share;
    for (; summed_ < segments; ++summed_) sum[summed_] = 0.0f;
    for (int64_t g = 0; g < segments; ++g) sum[g] += weight * share[g];
  }
  void add_to(float* out) {
    const int64_t a_block = keys_.segments_a_block;
    for (int64_t g = 0; g < summed_; ++g) out[g / a_block] += scratch_.share_sum[g];
    summed_ = 0;
  }

  Keys keys_;
  const Scratch& scratch_;
  int64_t count_ = 0, summed_ = 0;
  int64_t visible_[kMaxRows];
  float bias_[kMaxRows], weight_[kMaxRows];
  float *out_[kMaxRows], *lse_[kMaxRows];
};

class ItemRun {
 public:
  ItemRun(const ScoreSetup& setup, const ScoreItem& item, const Scratch& scratch)
      : setup_(setup), item_(item), scratch_(scratch), d_(setup.head_dim), dp_(padded_dim(d_)) {
    begin_ = std::max(item.block * kQueryBlock, item.first);
    end_ = std::min((item.block + 1) * kQueryBlock, item.first + item.n);
    for (const EstimatorTerm& term : setup.estimator.terms) all_weights_ += term.weight;
    sign_ = setup.scale > 0.0 ? 1.0f : setup.scale < 0.0 ? -1.0f : 0.0f;
  }

  void run() {
    const auto& terms = setup_.estimator.terms;
    if (std::any_of(terms.begin(), terms.end(),
                    [](const EstimatorTerm& term) { return uses_exact_keys(term.term); }))
      exact_terms();
    for (size_t t = 0; t < terms.size(); ++t)
      if (is_strided(terms[t].term)) strided_term(terms[t], item_.strided[t]);
    for (const EstimatorTerm& term : terms)
      if (uses_means(term.term)) mean_term(term);
  }

 private:
  struct Range {
    int64_t begin, end;
  };

  // --- indices ---

  int64_t position(int64_t v) const { return v + item_.offset; }
  // Groups of `size` keys whose first one index v sees.
  int64_t visible(int64_t v, int64_t size = 1) const {
    const int64_t all = ceil_div(item_.m, size);
    if (!setup_.causal) return all;
    return position(v) < 0 ? 0 : std::min(position(v) / size + 1, all);
  }
  Range group(int64_t g, int64_t size) const {
    return {std::max(g * size, item_.first), std::min((g + 1) * size, item_.first + item_.n)};
  }
  // Where the rows of a term stand: for each group of the block f(group).
  template <class F>
  void for_groups(int64_t size, F f) const {
    for (int64_t g = begin_ / size; g * size < end_; ++g) f(group(g, size));
  }
  int64_t pooled_visible(Range rows) const {
    return std::min(visible(rows.end - 1),
                    visible(end_ - 1, setup_.block_size) * setup_.block_size);
  }
  int64_t sample_of(Range rows, int64_t size) const {
    return std::clamp(rows.begin / size * size + size / 2, rows.begin, rows.end - 1);
  }
  // Index of the row that stands for a group.
  int64_t row_visible(const EstimatorTerm& term, Range rows) const {
    if (term.term == Term::kPooled) return pooled_visible(rows);
    if (term.term == Term::kSampled) return visible(sample_of(rows, term.size));
    return visible(rows.end - 1, term.size);  // strided: groups of keys
  }
  // The weight of a row of a term, of which some are live.
  float weight(const EstimatorTerm& term, int64_t live) const {
    return float(term.weight / all_weights_ / double(std::max<int64_t>(live, 1))) * item_.factor;
  }
  float group_weight(const EstimatorTerm& term) const {
    int64_t live = 0;
    for_groups(term.size, [&](Range rows) { live += row_visible(term, rows) > 0 ? 1 : 0; });
    return weight(term, live);
  }
  float* out(int64_t head) const { return item_.out + head * item_.out_stride; }
  float factor() const {
    return sign_ == 0.0f ? 1.0f : float(std::fabs(setup_.scale)) * attention::kLog2E;
  }

  // --- queries in fp32 ---

  // Rows [begin, begin + count) of one head; they stay until others are asked for.
  const float* load(int64_t head, int64_t begin, int64_t count) {
    if (head != loaded_head_ || begin < loaded_.begin || begin + count > loaded_.end) {
      attention::active_table().scores.load(item_.q, item_.q_type,
                                            item_.q_begin + begin - item_.first,
                                            item_.first_head + head, count, d_, scratch_.loaded);
      loaded_head_ = head;
      loaded_ = {begin, begin + count};
    }
    return scratch_.loaded + (begin - loaded_.begin) * dp_;
  }
  // f(row) for each of the rows.
  template <class F>
  void for_rows(int64_t head, Range rows, F f) {
    for (int64_t begin = rows.begin; begin < rows.end; begin += kLoadedRows) {
      const int64_t count = std::min(kLoadedRows, rows.end - begin);
      const float* at = load(head, begin, count);
      for (int64_t r = 0; r < count; ++r) f(at + r * dp_);
    }
  }
  const float* mean(int64_t head, Range rows) {
    float* __restrict to = scratch_.mean;
    std::fill_n(to, d_, 0.0f);
    for_rows(head, rows, [&](const float* row) {
      for (int64_t i = 0; i < d_; ++i) to[i] += row[i];
    });
    const float inverse = 1.0f / float(rows.end - rows.begin);
    for (int64_t i = 0; i < d_; ++i) to[i] *= inverse;
    return to;
  }
  // Mean over the channels of the variance of the rows whose mean was asked for last.
  float variance(int64_t head, Range rows) {
    float* __restrict to = scratch_.spread;
    std::fill_n(to, d_, 0.0f);
    for_rows(head, rows, [&](const float* row) {
      for (int64_t i = 0; i < d_; ++i)
        to[i] += (row[i] - scratch_.mean[i]) * (row[i] - scratch_.mean[i]);
    });
    float sum = 0.0f;
    for (int64_t i = 0; i < d_; ++i) sum += to[i];
    return sum / float(rows.end - rows.begin) / float(d_);
  }
  // Of the row farthest from the mean of the block, the lowest one on ties.
  int64_t farthest(int64_t head) {
    const float* centre = mean(head, {begin_, end_});
    const float* rows = load(head, begin_, end_ - begin_);
    int64_t found = begin_;
    float best = -1.0f;
    for (int64_t v = begin_; v < end_; ++v, rows += dp_) {
      float parts[16] = {};
      for (int64_t at = 0; at < d_; at += 16) {
        const int64_t count = std::min<int64_t>(16, d_ - at);
        for (int64_t i = 0; i < count; ++i)
          parts[i] += (rows[at + i] - centre[at + i]) * (rows[at + i] - centre[at + i]);
      }
      float distance = 0.0f;
      for (const float part : parts) distance += part;
      if (distance > best) {
        found = v;
        best = distance;
      }
    }
    return found;
  }

  void pack(const float* row, bool pairs, uint32_t* to) const {
    const int64_t words = pairs ? (d_ + 1) / 2 : d_;
    pack_words(row, d_, pairs, to);
    if (sign_ == 1.0f) return;
    const uint32_t flip = pairs ? 0x80008000u : 0x80000000u;
    for (int64_t i = 0; i < words; ++i) to[i] = sign_ == 0.0f ? 0u : to[i] ^ flip;
  }

  // --- terms ---

  void exact_terms() {
    RowBatch batch({item_.exact, setup_.pairs, setup_.words(), kBlockKeys,
                    setup_.block_size / kBlockKeys, factor()},
                   scratch_);
    for (int64_t head = 0; head < item_.heads; ++head) {
      for (const EstimatorTerm& term : setup_.estimator.terms) {
        if (term.term == Term::kPooled) {
          pooled(batch, term, head);
        } else if (term.term == Term::kSampled) {
          const float row_weight = group_weight(term);
          for_groups(term.size, [&](Range rows) {
            exact_row(batch, head, sample_of(rows, term.size), row_weight);
          });
        } else if (term.term == Term::kOutlier) {
          exact_row(batch, head, farthest(head), weight(term, 1));
        }
      }
    }
  }
  void exact_row(RowBatch& batch, int64_t head, int64_t v, float row_weight) {
    if (visible(v) == 0) return;
    pack(load(head, v, 1), setup_.pairs, batch.next());
    float* lse = item_.row_lse == nullptr
                     ? nullptr
                     : item_.row_lse + (v - item_.first) * item_.lse_stride + head;
    batch.push(visible(v), 0.0f, row_weight, out(head), lse);
  }
  void pooled(RowBatch& batch, const EstimatorTerm& term, int64_t head) {
    const float row_weight = group_weight(term);
    const double bias = 0.25 * setup_.scale * setup_.scale * double(attention::kLog2E);
    // of a group that is whole in the block, all rows at once
    if (term.size <= kLoadedRows) load(head, begin_, end_ - begin_);
    for_groups(term.size, [&](Range rows) {
      if (pooled_visible(rows) == 0) return;
      pack(mean(head, rows), setup_.pairs, batch.next());
      const float spread = term.norm_bias ? float(bias * double(variance(head, rows))) : 0.0f;
      batch.push(pooled_visible(rows), spread, row_weight, out(head));
    });
  }

  void strided_term(const EstimatorTerm& term, const attention::KeyBlocks& keys) {
    const int64_t size = term.size, words = setup_.words();
    RowBatch batch(
        {keys, setup_.pairs, size * words, setup_.block_size / size, 1, factor() / float(size)},
        scratch_);
    const float row_weight = group_weight(term);
    for (int64_t head = 0; head < item_.heads; ++head) {
      load(head, begin_, end_ - begin_);
      for_groups(size, [&](Range rows) {
        if (row_visible(term, rows) == 0) return;
        uint32_t* to = batch.next();
        const int64_t origin = rows.begin / size * size;
        for (int64_t i = 0; i < size; ++i, to += words) {
          const int64_t v = origin + (term.term == Term::kDiagonal ? i : size - 1 - i);
          if (v < rows.begin || v >= rows.end) {
            std::fill_n(to, words, 0u);
          } else {
            pack(load(head, v, 1), setup_.pairs, to);
          }
        }
        batch.push(row_visible(term, rows), 0.0f, row_weight, out(head));
      });
    }
  }

  void mean_term(const EstimatorTerm& term) {
    RowBatch batch({item_.means, false, d_, 1, 1, factor()}, scratch_);
    const bool pooled = term.term == Term::kBlockMean;
    int64_t live = 0;
    for (int64_t v = begin_; v < end_; ++v) live += visible(v) > 0 ? 1 : 0;
    const float row_weight = weight(term, pooled ? 1 : live);
    for (int64_t head = 0; head < item_.heads; ++head) {
      for (int64_t v = pooled ? end_ - 1 : begin_; v < end_; ++v) {
        const int64_t seen = visible(v, setup_.block_size);
        if (seen == 0) continue;
        pack(pooled ? mean(head, {begin_, end_})
                    : load(head, begin_, end_ - begin_) + (v - begin_) * dp_,
             false, batch.next());
        batch.push(seen, 0.0f, row_weight, out(head));
      }
    }
  }

  const ScoreSetup& setup_;
  const ScoreItem& item_;
  const Scratch& scratch_;
  int64_t d_, dp_;
  int64_t begin_ = 0, end_ = 0;  // indices of the block that exist
  double all_weights_ = 0.0;
  float sign_ = 1.0f;
  int64_t loaded_head_ = -1;
  Range loaded_{0, 0};
};

}  // namespace

KeyLayout::KeyLayout(const ScoreSetup& setup, int64_t m, bool pack_exact) {
  const auto& terms = setup.estimator.terms;
  const auto block_bytes = [](int64_t words) {
    return words * kBlockKeys * int64_t(sizeof(float));
  };
  exact_bytes = block_bytes(setup.words());
  mean_bytes = block_bytes(setup.head_dim);
  for (const EstimatorTerm& term : terms) {
    has_exact = has_exact || (pack_exact && uses_exact_keys(term.term));
    has_means = has_means || uses_means(term.term);
  }
  if (has_exact) bytes += exact_bytes * ceil_div(m, kBlockKeys);
  means = bytes;
  if (has_means) bytes += mean_bytes * ceil_div(ceil_div(m, setup.block_size), kBlockKeys);
  for (size_t t = 0; t < terms.size(); ++t) {
    if (!is_strided(terms[t].term)) continue;
    size_t same = 0;
    while (!is_strided(terms[same].term) || terms[same].size != terms[t].size) ++same;
    owner[t] = same == t;
    strided[t] = owner[t] ? bytes : strided[same];
    if (owner[t])
      bytes += exact_bytes * terms[t].size * ceil_div(ceil_div(m, terms[t].size), kBlockKeys);
  }
}

void KeyLayout::place(const ScoreSetup& setup, const std::byte* base, ScoreItem& item) const {
  item.means = {base + means, mean_bytes};
  for (size_t t = 0; t < setup.estimator.terms.size(); ++t)
    item.strided[t] = {base + strided[t], exact_bytes * setup.estimator.terms[t].size};
}

int64_t score_scratch_bytes(const ScoreSetup& setup, int64_t longest_k) {
  return carve(setup, longest_k, nullptr).bytes;
}

void score_item(const ScoreSetup& setup,
                const ScoreItem& item,
                int64_t longest_k,
                std::byte* scratch) {
  const Scratch parts = carve(setup, longest_k, scratch);
  ItemRun(setup, item, parts).run();
}

void pack_words(const float* from, int64_t d, bool pairs, uint32_t* to) {
  if (!pairs) {
    std::memcpy(to, from, size_t(d) * sizeof(float));
    return;
  }
  for (int64_t i = 0; i < d / 2; ++i)
    to[i] = float_to_bf16(from[2 * i]) | uint32_t(float_to_bf16(from[2 * i + 1])) << 16;
  if (d % 2 != 0) to[d / 2] = float_to_bf16(from[d - 1]);
}

}  // namespace longspur::kernels::xattn
