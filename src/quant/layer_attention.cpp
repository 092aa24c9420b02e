#include "quant/layer_attention.h"

#include <algorithm>
#include <cmath>

#include "base/aligned_buffer.h"
#include "base/half.h"
#include "base/shape.h"
#include "kernels/block_sparse/api.h"
#include "kernels/xattn/api.h"

namespace longspur::quant {

namespace attention = kernels::attention;
namespace block_sparse = kernels::block_sparse;
namespace xattn = kernels::xattn;

namespace {

// Runs the items of one phase, each thread with scratch of its own.
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

}  // namespace

LayerAttention::LayerAttention(const io::ModelConfig& config,
                               ThreadPool& pool,
                               std::span<const int32_t> cu_seqlens,
                               const Matrix& qkv,
                               int64_t block_size,
                               int64_t mask_heads)
    : config_(config),
      pool_(pool),
      cu_seqlens_(cu_seqlens),
      halves_(qkv.values.size()),
      width_(qkv.width),
      block_size_(block_size),
      mask_heads_(mask_heads) {
  std::transform(qkv.values.begin(), qkv.values.end(), halves_.begin(), float_to_bf16);
  int64_t longest = 0;
  for (int64_t b = 0; b < sequences(); ++b) longest = std::max(longest, tokens(b));
  query_blocks_ = ceil_div(longest, kernels::kQueryBlock);
  key_blocks_ = ceil_div(longest, block_size_);
  row_words_ = kernels::BlockMask::words_of(key_blocks_);
}

attention::VarlenShape LayerAttention::shape() const {
  attention::VarlenShape shape;
  shape.cu_seqlens_q = shape.cu_seqlens_k = cu_seqlens_.data();
  shape.batch = sequences();
  shape.heads = config_.heads;
  shape.kv_heads = config_.kv_heads;
  shape.head_dim = config_.head_dim;
  shape.scale = 1.0 / std::sqrt(double(config_.head_dim));
  shape.dtype = DType::kBF16;
  return shape;
}

attention::ConstRows LayerAttention::rows_at(int64_t head) const {
  return {halves_.data() + head * config_.head_dim, width_, config_.head_dim};
}

std::vector<float> LayerAttention::scores(const xattn::Estimator& estimator) const {
  std::vector<float> scores(rows() * size_t(key_blocks_));
  xattn::ScoreArgs args;
  args.shape = shape();
  args.q = rows_at(0);
  args.k = rows_at(config_.heads);
  args.estimator = estimator;
  args.block_size = block_size_;
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

// With a sample of every query the estimate is the truth.
std::vector<float> LayerAttention::masses() const {
  return scores({{{xattn::Term::kSampled, 1, 1.0, false}}});
}

std::vector<double> LayerAttention::errors(const std::vector<uint32_t>& words,
                                           const Matrix& dense,
                                           std::span<const int64_t> first_rows) const {
  std::vector<uint16_t> sparse(dense.values.size());
  std::vector<float> lse(size_t(config_.heads * dense.rows));
  block_sparse::ForwardArgs args;
  args.dense.shape = shape();
  args.dense.q = rows_at(0);
  args.dense.k = rows_at(config_.heads);
  args.dense.v = rows_at(config_.heads + config_.kv_heads);
  args.dense.out = {sparse.data(), dense.width, config_.head_dim};
  args.dense.lse = lse.data();
  args.dense.lse_stride = dense.rows;
  args.mask = {words.data(), block_size_, mask_heads_, query_blocks_, row_words_};
  const block_sparse::Forward forward(args);
  run_items(pool_, forward.scratch_bytes(), forward.items(),
            [&](int64_t item, std::byte* scratch) { forward.run(item, scratch); });
  const int64_t width = dense.width / mask_heads_;
  std::vector<double> errors;
  for (int64_t h = 0; h < mask_heads_; ++h) {
    double difference = 0, magnitude = 0;
    for (int64_t b = 0; b < sequences(); ++b) {
      for (int64_t t = first_rows[size_t(b)]; t < tokens(b); ++t) {
        const int64_t at = (cu_seqlens_[size_t(b)] + t) * dense.width + h * width;
        for (int64_t i = at; i < at + width; ++i) {
          const auto exact = double(dense.values[size_t(i)]);
          difference += std::abs(double(bf16_to_float(sparse[size_t(i)])) - exact);
          magnitude += std::abs(exact);
        }
      }
    }
    errors.push_back(magnitude > 0 ? difference / magnitude : 0);
  }
  return errors;
}

double listed_share(const float* masses, const uint32_t* words, int64_t key_blocks) {
  double total = 0, listed = 0;
  for (int64_t j = 0; j < key_blocks; ++j) {
    total += double(masses[j]);
    if (kernels::has_block(words, j)) listed += double(masses[j]);
  }
  return total > 0 ? listed / total : 1;
}

}  // namespace longspur::quant
