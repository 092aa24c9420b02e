#include "quant/thresholds.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/aligned_buffer.h"
#include "base/half.h"
#include "base/shape.h"
#include "kernels/block_sparse/api.h"

namespace longspur::quant {

namespace {

namespace attention = kernels::attention;
namespace block_sparse = kernels::block_sparse;
namespace xattn = kernels::xattn;
using kernels::BlockMask;
using kernels::kQueryBlock;

constexpr double kProfiledMass = 0.9;

// Runs the phases of a computation that is cut into items.
template <class Run>
void run_items(ThreadPool& pool, int64_t scratch_bytes, int64_t items, const Run& run) {
  const auto bytes = size_t(round_up(scratch_bytes, 64));
  AlignedBuffer scratch(bytes * size_t(pool.size()));
  pool.run([&](Team& team) {
    team.dynamic_for(items, 1, [&](int64_t item, int64_t) {
      run(item, scratch.data() + bytes * size_t(team.rank()));
    });
  });
}

// One layer's attention of all windows, and the sums over its rows.
class LayerProfile : public AttentionObserver {
 public:
  LayerProfile(const io::ModelConfig& config, ThreadPool& pool, const ProfileOptions& options)
      : config_(config),
        pool_(pool),
        options_(options),
        mask_heads_(options.per_head ? config.heads : config.kv_heads),
        heads_(size_t(mask_heads_)) {
    for (HeadProfile& head : heads_)
      for (const float threshold : options.candidates) head.choices.push_back({threshold});
  }

  void attends(std::span<const int32_t> cu_seqlens, const Matrix& qkv, const Matrix& out) override {
    cu_seqlens_ = cu_seqlens;
    set_shape(qkv);
    scores_ = score(options_.estimator);
    truth_ = score({{{xattn::Term::kSampled, 1, 1.0, false}}});  // every query, exact
    for (size_t c = 0; c < options_.candidates.size(); ++c) try_candidate(c, out);
    for (int64_t h = 0; h < mask_heads_; ++h) heads_[size_t(h)].profiled = profiling_rule(h);
  }

  std::vector<HeadProfile> take() { return std::move(heads_); }

 private:
  int64_t sequences() const { return int64_t(cu_seqlens_.size()) - 1; }
  int64_t tokens(int64_t b) const { return cu_seqlens_[size_t(b + 1)] - cu_seqlens_[size_t(b)]; }
  int64_t blocks(int64_t b) const { return ceil_div(tokens(b), kQueryBlock); }
  int64_t first_block(int64_t b) const { return blocks(b) / 4; }

  // The 16-bit copy is what the fast attention reads; its rounding is far below what selection
  // changes.
  void set_shape(const Matrix& qkv) {
    width_ = qkv.width;
    halves_.resize(qkv.values.size());
    std::transform(qkv.values.begin(), qkv.values.end(), halves_.begin(),
                   [](float x) { return float_to_bf16(x); });
    shape_.cu_seqlens_q = shape_.cu_seqlens_k = cu_seqlens_.data();
    shape_.batch = sequences();
    shape_.heads = config_.heads;
    shape_.kv_heads = config_.kv_heads;
    shape_.head_dim = config_.head_dim;
    shape_.scale = 1.0 / std::sqrt(double(config_.head_dim));
    shape_.dtype = DType::kBF16;
    int64_t longest = 0;
    for (int64_t b = 0; b < sequences(); ++b) longest = std::max(longest, tokens(b));
    query_blocks_ = ceil_div(longest, kQueryBlock);
    key_blocks_ = ceil_div(longest, options_.select.block_size);
    row_words_ = BlockMask::words_of(key_blocks_);
  }

  attention::ConstRows rows_at(int64_t head) const {
    return {halves_.data() + head * config_.head_dim, width_, config_.head_dim};
  }

  std::vector<float> score(const xattn::Estimator& estimator) {
    std::vector<float> scores(size_t(sequences() * mask_heads_ * query_blocks_ * key_blocks_));
    xattn::ScoreArgs args;
    args.shape = shape_;
    args.q = rows_at(0);
    args.k = rows_at(config_.heads);
    args.estimator = estimator;
    args.block_size = options_.select.block_size;
    args.scores = scores.data();
    args.score_heads = mask_heads_;
    args.query_blocks = query_blocks_;
    args.key_blocks = key_blocks_;
    const xattn::BlockScores computation(args);
    AlignedBuffer workspace(size_t(round_up(computation.workspace_bytes(), 64)));
    for (int phase = 0; phase < xattn::BlockScores::kPhases; ++phase) {
      run_items(pool_, computation.scratch_bytes(), computation.items(phase),
                [&](int64_t item, std::byte* scratch) {
                  computation.run(phase, item, scratch, workspace.data());
                });
    }
    return scores;
  }

  size_t row_index(int64_t b, int64_t head, int64_t i) const {
    return size_t((b * mask_heads_ + head) * query_blocks_ + i);
  }
  const float* row(const std::vector<float>& scores, size_t index) const {
    return scores.data() + index * size_t(key_blocks_);
  }

  void try_candidate(size_t c, const Matrix& out) {
    std::vector<float> thresholds(size_t(mask_heads_), options_.candidates[c]);
    std::vector<uint32_t> words(size_t(sequences() * mask_heads_ * query_blocks_ * row_words_));
    std::vector<xattn::RowStats> stats(size_t(sequences() * mask_heads_ * query_blocks_));
    xattn::SelectArgs args;
    args.scores = scores_.data();
    args.threshold = thresholds.data();
    args.cu_seqlens_q = args.cu_seqlens_k = cu_seqlens_.data();
    args.batch = sequences();
    args.heads = mask_heads_;
    args.query_blocks = query_blocks_;
    args.key_blocks = key_blocks_;
    args.options = options_.select;
    args.words = words.data();
    args.stats = stats.data();
    xattn::select(args, 0, int64_t(stats.size()));
    for (int64_t h = 0; h < mask_heads_; ++h)
      add_rows(h, words, stats, heads_[size_t(h)].choices[c]);
    if (options_.with_error) measure_error(c, words, out);
  }

  // Density and lost mass of one head, as means over the rows that count.
  void add_rows(int64_t head,
                const std::vector<uint32_t>& words,
                const std::vector<xattn::RowStats>& stats,
                ThresholdChoice& choice) const {
    int64_t kept = 0, visible = 0, rows = 0;
    double lost = 0;
    for (int64_t b = 0; b < sequences(); ++b) {
      for (int64_t i = first_block(b); i < blocks(b); ++i, ++rows) {
        const size_t index = row_index(b, head, i);
        kept += stats[index].kept;
        visible += stats[index].visible;
        const float* truth = row(truth_, index);
        const uint32_t* listed = words.data() + index * size_t(row_words_);
        double total = 0, listed_mass = 0;
        for (int64_t j = 0; j < key_blocks_; ++j) {
          total += double(truth[j]);
          if (kernels::has_block(listed, j)) listed_mass += double(truth[j]);
        }
        if (total > 0) lost += 1 - listed_mass / total;
      }
    }
    choice.density = double(kept) / double(std::max<int64_t>(1, visible));
    choice.lost = lost / double(std::max<int64_t>(1, rows));
  }

  void measure_error(size_t c, const std::vector<uint32_t>& words, const Matrix& dense) {
    std::vector<uint16_t> sparse(dense.values.size());
    std::vector<float> lse(size_t(config_.heads * dense.rows));
    block_sparse::ForwardArgs args;
    args.dense.shape = shape_;
    args.dense.q = rows_at(0);
    args.dense.k = rows_at(config_.heads);
    args.dense.v = rows_at(config_.heads + config_.kv_heads);
    args.dense.out = {sparse.data(), dense.width, config_.head_dim};
    args.dense.lse = lse.data();
    args.dense.lse_stride = dense.rows;
    args.mask = {words.data(), options_.select.block_size, mask_heads_, query_blocks_, row_words_};
    const block_sparse::Forward forward(args);
    run_items(pool_, forward.scratch_bytes(), forward.items(),
              [&](int64_t item, std::byte* scratch) { forward.run(item, scratch); });
    const int64_t group_width = dense.width / mask_heads_;
    for (int64_t h = 0; h < mask_heads_; ++h) {
      double difference = 0, magnitude = 0;
      for (int64_t b = 0; b < sequences(); ++b) {
        for (int64_t t = first_block(b) * kQueryBlock; t < tokens(b); ++t) {
          const int64_t at = (cu_seqlens_[size_t(b)] + t) * dense.width + h * group_width;
          for (int64_t d = at; d < at + group_width; ++d) {
            const float exact = dense.values[size_t(d)];
            difference += std::abs(double(bf16_to_float(sparse[size_t(d)])) - double(exact));
            magnitude += std::abs(double(exact));
          }
        }
      }
      heads_[size_t(h)].choices[c].error = magnitude > 0 ? difference / magnitude : 0;
    }
  }

  // Of one row: the score of the lowest-scored block among the fewest that make up the mass.
  float lowest_needed(const float* scores, const float* truth) const {
    std::vector<int64_t> order(static_cast<size_t>(key_blocks_));
    std::iota(order.begin(), order.end(), int64_t{0});
    std::stable_sort(order.begin(), order.end(),
                     [&](int64_t a, int64_t b) { return truth[a] > truth[b]; });
    const double total = std::accumulate(truth, truth + key_blocks_, 0.0);
    double mass = 0;
    float lowest = scores[order[0]];
    for (const int64_t j : order) {
      if (mass >= kProfiledMass * total) break;
      mass += double(truth[j]);
      lowest = std::min(lowest, scores[j]);
    }
    return lowest;
  }

  double profiling_rule(int64_t head) const {
    double largest = 0;
    for (int64_t b = 0; b < sequences(); ++b) {
      double kept = 0, total = 0;
      for (int64_t i = 0; i < blocks(b); ++i) {
        const float* scores = row(scores_, row_index(b, head, i));
        const float lowest = lowest_needed(scores, row(truth_, row_index(b, head, i)));
        for (int64_t j = 0; j < key_blocks_; ++j) {
          total += double(scores[j]);
          if (scores[j] >= lowest) kept += double(scores[j]);
        }
      }
      if (total > 0) largest = std::max(largest, kept / total);
    }
    return std::min(1.0, largest);
  }

  const io::ModelConfig& config_;
  ThreadPool& pool_;
  const ProfileOptions& options_;
  int64_t mask_heads_;
  std::vector<HeadProfile> heads_;

  std::span<const int32_t> cu_seqlens_;
  std::vector<uint16_t> halves_;  // qkv in bf16
  int64_t width_ = 0;
  attention::VarlenShape shape_;
  int64_t query_blocks_ = 0, key_blocks_ = 0, row_words_ = 0;
  std::vector<float> scores_, truth_;  // [B, mask heads, query blocks, key blocks]
};

}  // namespace

std::vector<HeadProfile> profile_thresholds(const FloatDecoder& decoder,
                                            const models::DecoderTensors& tensors,
                                            std::span<const std::vector<int32_t>> windows,
                                            const ProfileOptions& options,
                                            const std::function<void(int64_t, int64_t)>& progress) {
  FloatDecoder::Batch batch = decoder.embed(windows);
  std::vector<HeadProfile> heads;
  const auto layers = int64_t(tensors.layers.size());
  for (int64_t layer = 0; layer < layers; ++layer) {
    if (progress) progress(layer, layers);
    const PackedLayer packed =
        pack_layer(load_layer(tensors.layers[size_t(layer)], decoder.pool()), decoder.pool());
    LayerProfile profile(decoder.config(), decoder.pool(), options);
    FloatDecoder::LayerOptions run;
    run.attention = &profile;
    decoder.run_layer(size_t(layer), packed, batch, run);
    for (HeadProfile& head : profile.take()) heads.push_back(std::move(head));
  }
  if (progress) progress(layers, layers);
  return heads;
}

}  // namespace longspur::quant
