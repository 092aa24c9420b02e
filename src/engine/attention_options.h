// Attention as the user asks for it, checked and made into the plan that executors follow.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "io/files/model_config.h"
#include "runtime/attention_plan.h"

namespace longspur::engine {

struct AttentionOptions {
  std::string kind = "dense";  // or xattention
  // XAttention. Threshold of all heads, or a file of thresholds for each, not both; neither:
  // kDefaultThreshold.
  std::optional<double> threshold;
  std::string thresholds_file;
  std::string estimator;   // kernels/xattn/estimator.h; empty: the file's, else "default"
  int64_t block_size = 0;  // of keys: 64 or 128; 0: the file's, else kDefaultBlock
  std::string rule;        // "share" or "of_max"; empty: the file's, else share
  int64_t sink_blocks = 1, local_blocks = 1;
  bool mask_per_head = false;
  int64_t first_layers_dense = 0;
  // Of each prompt. Its question is at the end, in few rows of a block that chooses by the mean.
  int64_t last_tokens_dense = 128;
  std::optional<int64_t> min_length;  // query blocks before it are dense; none: a cost model
  bool mean_correction = false;       // a skipped block still counts, as its mean key and value
  double guard = 1.0;                 // largest estimated share of attention that may be missing

  static constexpr double kDefaultThreshold = 0.95;
  static constexpr int64_t kDefaultBlock = 128;
};

// Throws UsageError on impossible values, UnsupportedError on a kind that is not built. Reads no
// file.
void validate(const AttentionOptions& options);

// Reads the file of thresholds; throws Error where it does not fit the model.
runtime::AttentionPlan attention_plan(const AttentionOptions& options,
                                      const io::ModelConfig& config);

// Prompts are computed in pieces that end at multiples of this.
int64_t prefill_align(const AttentionOptions& options);

}  // namespace longspur::engine
