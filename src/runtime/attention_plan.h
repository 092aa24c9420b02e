// Which attention each layer's heads use in prefill, and when: plain values, decided before a model
// is loaded, the same on every device. Decoding is dense.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "io/files/model_config.h"
#include "kernels/xattn/api.h"
#include "runtime/executor.h"

namespace longspur::runtime {

// XAttention: query blocks of a prompt read the blocks of keys that selection keeps.
struct XattentionPlan {
  // None: xattn::default_estimator() of the prompt's length.
  std::optional<kernels::xattn::Estimator> estimator;
  kernels::xattn::SelectOptions select;  // rule, block size, forced blocks
  std::vector<float> thresholds;         // [layers, H], 0 to 1; 1: dense
  bool mask_per_head = false;            // else one mask for the heads of a KV group
  // A skipped block counts as one key and value, its means, with the weight of its tokens.
  bool mean_correction = false;
  int64_t first_layers_dense = 0;
  int64_t last_tokens_dense = 0;  // of each prompt
  // Query blocks that begin below this position are dense; none: where the cost model says that
  // scoring and reading the expected share of blocks costs more than reading all.
  std::optional<int64_t> dense_below;
  // Query blocks whose kept blocks hold an estimated share of attention below this are selected
  // again by share, so that they hold it.
  float least_share = 0.0f;
};

// No xattention: dense.
struct AttentionPlan {
  std::optional<XattentionPlan> xattention;
};

// A plan applied to a model.
class XattentionPolicy {
 public:
  // Throws Error where the plan's thresholds are not of the model's shape.
  XattentionPolicy(const XattentionPlan& plan, const io::ModelConfig& config);

  const XattentionPlan& plan() const { return plan_; }
  int64_t mask_heads() const { return mask_heads_; }
  // Whether the rows of sequence b of a batch are a prompt's that has sparse blocks; all pieces of
  // a prompt answer the same.
  bool is_sparse(const ForwardBatch& batch, int64_t b) const;
  bool is_sparse_layer(int64_t layer) const { return sparse_layer_[size_t(layer)]; }
  kernels::xattn::Estimator estimator(int64_t prompt) const;
  // Query blocks [first, last) of a prompt that may be sparse; blocks count from position 0.
  struct Blocks {
    int64_t first = 0, last = 0;
  };
  Blocks sparse_blocks(int64_t prompt) const;
  // Thresholds of a layer's mask heads, or `threshold` for all; 2: dense, as select reads it.
  std::vector<float> thresholds(int64_t layer, float threshold) const;
  // Whether any estimator for prompts up to `longest` tokens scores by means of keys.
  bool needs_key_means(int64_t longest) const;

 private:
  XattentionPlan plan_;
  int64_t heads_, kv_heads_, layers_, mask_heads_;
  std::vector<char> sparse_layer_;
};

// Cost of scoring relative to dense attention over the same keys, and the share of blocks that
// selection is expected to keep of `keys` keys: estimates (docs/xattention.md).
double scoring_cost(const kernels::xattn::Estimator& estimator);
double expected_density(int64_t keys, const kernels::xattn::SelectOptions& options);

}  // namespace longspur::runtime
