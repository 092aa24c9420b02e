#include "quant/thresholds.h"

#include <algorithm>
#include <numeric>
#include <optional>

#include "base/shape.h"
#include "quant/layer_attention.h"

namespace longspur::quant {

namespace {

namespace xattn = kernels::xattn;
using kernels::kQueryBlock;

constexpr double kProfiledMass = 0.9;

// One layer's attention of all windows, and the sums over its rows.
class LayerProfile : public AttentionObserver {
 public:
  LayerProfile(const io::ModelConfig& config, ThreadPool& pool, const ProfileOptions& options)
      : config_(config),
        pool_(pool),
        options_(options),
        heads_(size_t(options.per_head ? config.heads : config.kv_heads)) {
    for (HeadProfile& head : heads_)
      for (const float threshold : options.candidates) head.choices.push_back({threshold});
  }

  void attends(std::span<const int32_t> cu_seqlens, const Matrix& qkv, const Matrix& out) override {
    layer_.emplace(config_, pool_, cu_seqlens, qkv, options_.select.block_size,
                   int64_t(heads_.size()));
    key_blocks_ = layer_->key_blocks();
    scores_ = layer_->scores(options_.estimator);
    truth_ = layer_->masses();
    first_rows_.clear();
    for (int64_t b = 0; b < layer_->sequences(); ++b)
      first_rows_.push_back(first_block(b) * kQueryBlock);
    for (size_t c = 0; c < options_.candidates.size(); ++c) try_candidate(cu_seqlens, c, out);
    for (size_t h = 0; h < heads_.size(); ++h) heads_[h].profiled = profiling_rule(int64_t(h));
  }

  std::vector<HeadProfile> take() { return std::move(heads_); }

 private:
  int64_t blocks(int64_t b) const { return ceil_div(layer_->tokens(b), kQueryBlock); }
  int64_t first_block(int64_t b) const { return blocks(b) / 4; }
  const float* row(const std::vector<float>& scores, size_t index) const {
    return scores.data() + index * size_t(key_blocks_);
  }

  void try_candidate(std::span<const int32_t> cu_seqlens, size_t c, const Matrix& out) {
    const std::vector<float> thresholds(heads_.size(), options_.candidates[c]);
    std::vector<uint32_t> words(layer_->rows() * size_t(layer_->row_words()));
    std::vector<xattn::RowStats> stats(layer_->rows());
    xattn::SelectArgs args;
    args.scores = scores_.data();
    args.threshold = thresholds.data();
    args.cu_seqlens_q = args.cu_seqlens_k = cu_seqlens.data();
    args.batch = layer_->sequences();
    args.heads = layer_->mask_heads();
    args.query_blocks = layer_->query_blocks();
    args.key_blocks = key_blocks_;
    args.options = options_.select;
    args.words = words.data();
    args.stats = stats.data();
    xattn::select(args, 0, int64_t(stats.size()));
    for (size_t h = 0; h < heads_.size(); ++h)
      add_rows(int64_t(h), words, stats, heads_[h].choices[c]);
    if (!options_.with_error) return;
    const std::vector<double> errors = layer_->errors(words, out, first_rows_);
    for (size_t h = 0; h < heads_.size(); ++h) heads_[h].choices[c].error = errors[h];
  }

  // Density and lost mass of one head, as means over the rows that count.
  void add_rows(int64_t head,
                const std::vector<uint32_t>& words,
                const std::vector<xattn::RowStats>& stats,
                ThresholdChoice& choice) const {
    int64_t kept = 0, visible = 0, rows = 0;
    double lost = 0;
    for (int64_t b = 0; b < layer_->sequences(); ++b) {
      for (int64_t i = first_block(b); i < blocks(b); ++i, ++rows) {
        const size_t index = layer_->row(b, head, i);
        kept += stats[index].kept;
        visible += stats[index].visible;
        lost += 1 - listed_share(row(truth_, index),
                                 words.data() + index * size_t(layer_->row_words()), key_blocks_);
      }
    }
    choice.density = double(kept) / double(std::max<int64_t>(1, visible));
    choice.lost = lost / double(std::max<int64_t>(1, rows));
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
    for (int64_t b = 0; b < layer_->sequences(); ++b) {
      double kept = 0, total = 0;
      for (int64_t i = 0; i < blocks(b); ++i) {
        const size_t index = layer_->row(b, head, i);
        const float* scores = row(scores_, index);
        const float lowest = lowest_needed(scores, row(truth_, index));
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
  std::vector<HeadProfile> heads_;

  std::optional<LayerAttention> layer_;
  int64_t key_blocks_ = 0;
  std::vector<float> scores_, truth_;  // [rows, key blocks]
  std::vector<int64_t> first_rows_;    // [B]: where the last three quarters begin
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
