#include "runtime/attention_plan.h"

#include <algorithm>

#include "base/error.h"
#include "base/shape.h"
#include "kernels/attention/paged.h"
#include "kernels/common/block_mask.h"

namespace longspur::runtime {

namespace xattn = kernels::xattn;

namespace {

// `select` reads a threshold of at least this as "every block".
constexpr float kDenseHead = 2.0f;

// Estimated with the default model on CPU, docs/xattention.md: scoring by one query of S costs this
// over S of dense attention, and selection at the default threshold keeps this share of the blocks
// that are not forced.
constexpr double kScoringOverhead = 1.5;
constexpr double kExpectedDensity = 0.35;
// Choosing blocks costs a query block as much as reading this many keys.
constexpr double kChoiceKeys = 512;

}  // namespace

double prompt_share(const ForwardBatch& batch) {
  int64_t rows = 0;
  for (size_t b = 0; b < batch.kv_lens.size(); ++b)
    if (batch.is_prompt(int64_t(b))) rows += batch.cu_seqlens[b + 1] - batch.cu_seqlens[b];
  return double(rows) / double(batch.tokens.size());
}

double scoring_cost(const xattn::Estimator& estimator) {
  double cost = 0;
  for (const xattn::EstimatorTerm& term : estimator.terms) {
    const auto size = double(term.size);
    switch (term.term) {
      case xattn::Term::kAntidiagonal:
      case xattn::Term::kDiagonal:
      case xattn::Term::kPooled:
      case xattn::Term::kSampled:
        cost += kScoringOverhead / size;
        break;
      case xattn::Term::kOutlier:
      case xattn::Term::kMean:
      case xattn::Term::kBlockMean:
        cost += kScoringOverhead / double(kernels::kQueryBlock);
        break;
    }
  }
  return cost;
}

double expected_density(int64_t keys, const xattn::SelectOptions& options) {
  const double blocks = double(ceil_div(keys, options.block_size));
  const double forced = std::min(blocks, double(options.sink_blocks + options.local_blocks));
  return forced / blocks + (1 - forced / blocks) * kExpectedDensity;
}

namespace {

// Whether a query block that sees `keys` keys gains by choosing among them.
bool is_worth(double scoring, int64_t keys, const xattn::SelectOptions& options) {
  return scoring + kChoiceKeys / double(keys) + expected_density(keys, options) < 1;
}

}  // namespace

XattentionPolicy::XattentionPolicy(const XattentionPlan& plan, const io::ModelConfig& config)
    : plan_(plan),
      heads_(config.heads),
      kv_heads_(config.kv_heads),
      layers_(config.layers),
      mask_heads_(plan.mask_per_head ? config.heads : config.kv_heads) {
  require(int64_t(plan.thresholds.size()) == layers_ * heads_, "attention thresholds: found ",
          plan.thresholds.size(), ", expected ", layers_, " layers of ", heads_, " heads");
  for (int64_t layer = 0; layer < layers_; ++layer) {
    sparse_layer_.push_back(layer >= plan.first_layers_dense &&
                            config.sliding_window[size_t(layer)] == 0);
  }
}

xattn::Estimator XattentionPolicy::estimator(int64_t prompt) const {
  return plan_.estimator ? *plan_.estimator : xattn::default_estimator(prompt);
}

XattentionPolicy::Blocks XattentionPolicy::sparse_blocks(int64_t prompt) const {
  constexpr int64_t kBlock = kernels::kQueryBlock;
  Blocks blocks{0, ceil_div(prompt, kBlock)};
  // Few rows are dense in a piece of their own (kernels/attention/paged.h), so they always are.
  if (prompt % kBlock < kernels::attention::kFewQueries) blocks.last = prompt / kBlock;
  if (plan_.last_tokens_dense > 0)
    blocks.last = std::max<int64_t>(0, prompt - plan_.last_tokens_dense) / kBlock;
  if (plan_.dense_below) {
    blocks.first = ceil_div(*plan_.dense_below, kBlock);
  } else {
    const double scoring = scoring_cost(estimator(prompt));
    while (blocks.first < blocks.last &&
           !is_worth(scoring, (blocks.first + 1) * kBlock, plan_.select))
      ++blocks.first;
  }
  blocks.first = std::min(blocks.first, blocks.last);
  return blocks;
}

bool XattentionPolicy::is_sparse(const ForwardBatch& batch, int64_t b) const {
  if (!batch.is_prompt(b) || batch.thresholds[size_t(b)] >= 1) return false;
  const Blocks blocks = sparse_blocks(batch.prompt_lens[size_t(b)]);
  return blocks.first < blocks.last;
}

std::vector<float> XattentionPolicy::thresholds(int64_t layer, float threshold) const {
  std::vector<float> result(size_t(mask_heads_), threshold);
  if (threshold < 0) {
    const int64_t group = heads_ / mask_heads_;
    const float* heads = plan_.thresholds.data() + layer * heads_;
    for (int64_t head = 0; head < mask_heads_; ++head)
      result[size_t(head)] = *std::max_element(heads + head * group, heads + (head + 1) * group);
  }
  for (float& value : result)
    if (value >= 1) value = kDenseHead;
  return result;
}

bool XattentionPolicy::needs_key_means(int64_t longest) const {
  for (int64_t length = kernels::kQueryBlock;; length *= 2) {
    for (const xattn::EstimatorTerm& term : estimator(std::min(length, longest)).terms)
      if (term.term == xattn::Term::kMean || term.term == xattn::Term::kBlockMean) return true;
    if (length >= longest) return false;
  }
}

}  // namespace longspur::runtime
