#include "engine/attention_options.h"

#include <limits>

#include "base/error.h"
#include "io/files/xattention_thresholds.h"
#include "kernels/common/block_mask.h"
#include "kernels/xattn/estimator.h"
#include "request/request.h"

namespace longspur::engine {

namespace xattn = kernels::xattn;

namespace {

constexpr int64_t kStride = 16;  // of antidiagonal and diagonal terms that do not say theirs
constexpr int64_t kMostBlocks = int64_t(1) << 20, kMostTokens = int64_t(1) << 24;

bool is_xattention(const AttentionOptions& options) { return options.kind == "xattention"; }

void check_share(const char* name, double value) {
  if (!(value >= 0.0 && value <= 1.0))
    throw UsageError(concat(name, ": found ", value, ", expected 0 to 1"));
}

void check_count(const char* name, int64_t value, int64_t most) {
  if (value < 0 || value > most)
    throw UsageError(concat(name, ": found ", value, ", expected 0 to ", most));
}

void check_block(int64_t size) {
  if (size != 0 && size != 64 && size != 128)
    throw UsageError(concat("xattn-block: found ", size, ", expected 64 or 128"));
}

xattn::Estimator parse(const std::string& text, int64_t block_size, const std::string& where) {
  try {
    return xattn::parse_estimator(text, kStride, block_size, std::numeric_limits<int32_t>::max());
  } catch (const Error& error) {
    throw UsageError(concat(where, ": ", error.what()));
  }
}

// None: the default for the prompt's length.
std::optional<xattn::Estimator> estimator_of(const std::string& text,
                                             int64_t block_size,
                                             const std::string& where) {
  if (text.empty() || text == "default") return std::nullopt;
  return parse(text, block_size, where);
}

// What the command line says of something that the file says too must be the same: thresholds are
// made for one kind of scores.
void check_agrees(bool same,
                  const char* option,
                  const std::string& found,
                  const std::string& expected,
                  const std::string& file) {
  if (!same) {
    throw UsageError(concat(option, ": found ", found, ", expected ", expected,
                            ", which the thresholds of ", file, " are for"));
  }
}

void take_file(const AttentionOptions& options,
               const io::ModelConfig& config,
               runtime::XattentionPlan& plan) {
  const std::string& file = options.thresholds_file;
  const io::XattentionThresholds table = io::read_xattention_thresholds(file);
  io::check_thresholds_fit(table, config, file);
  check_agrees(options.block_size == 0 || options.block_size == table.block_size, "xattn-block",
               concat(options.block_size), concat(table.block_size), file);
  plan.select.block_size = table.block_size;
  check_agrees(options.rule.empty() || (options.rule == "of_max") == table.of_max, "xattn-rule",
               options.rule, table.of_max ? "of_max" : "share", file);
  plan.select.rule = table.of_max ? xattn::Rule::kOfMax : xattn::Rule::kShare;
  plan.estimator = estimator_of(table.estimator, table.block_size, file);
  if (!options.estimator.empty()) {
    const auto text = [](const std::optional<xattn::Estimator>& estimator) {
      return estimator ? xattn::to_string(*estimator) : std::string("default");
    };
    const std::string found =
        text(estimator_of(options.estimator, table.block_size, "xattn-estimator"));
    check_agrees(found == text(plan.estimator), "xattn-estimator", found, text(plan.estimator),
                 file);
  }
  plan.thresholds = table.thresholds;
}

}  // namespace

void validate(const AttentionOptions& options) {
  if (options.kind != "dense" && !is_xattention(options)) {
    throw UnsupportedError(concat("attention: found '", options.kind,
                                  "', which is not built yet, expected dense or xattention"));
  }
  if (!is_xattention(options)) return;
  if (options.threshold) {
    check_share("xattn-threshold", *options.threshold);
    if (!options.thresholds_file.empty())
      throw UsageError("xattn-threshold: found xattn-thresholds too, expected one of them");
  }
  check_share("xattn-guard", options.guard);
  check_block(options.block_size);
  if (!options.rule.empty() && options.rule != "share" && options.rule != "of_max") {
    throw UsageError(concat("xattn-rule: found '", options.rule, "', expected share or of_max"));
  }
  estimator_of(options.estimator,
               options.block_size > 0 ? options.block_size : AttentionOptions::kDefaultBlock,
               "xattn-estimator");
  check_count("xattn-sink", options.sink_blocks, kMostBlocks);
  check_count("xattn-local", options.local_blocks, kMostBlocks);
  check_count("xattn-first-layers-dense", options.first_layers_dense, kMostBlocks);
  check_count("xattn-last-dense", options.last_tokens_dense, kMostTokens);
  if (options.min_length) check_count("xattn-min-length", *options.min_length, kMostTokens);
}

runtime::AttentionPlan attention_plan(const AttentionOptions& options,
                                      const io::ModelConfig& config) {
  if (!is_xattention(options)) return {};
  runtime::XattentionPlan plan;
  plan.select.block_size =
      options.block_size > 0 ? options.block_size : AttentionOptions::kDefaultBlock;
  plan.select.rule = options.rule == "of_max" ? xattn::Rule::kOfMax : xattn::Rule::kShare;
  plan.select.sink_blocks = options.sink_blocks;
  plan.select.local_blocks = options.local_blocks;
  plan.estimator = estimator_of(options.estimator, plan.select.block_size, "xattn-estimator");
  plan.thresholds.assign(size_t(config.layers * config.heads),
                         float(options.threshold.value_or(AttentionOptions::kDefaultThreshold)));
  if (!options.thresholds_file.empty()) take_file(options, config, plan);
  plan.mask_per_head = options.mask_per_head;
  plan.mean_correction = options.mean_correction;
  plan.first_layers_dense = options.first_layers_dense;
  plan.last_tokens_dense = options.last_tokens_dense;
  plan.dense_below = options.min_length;
  plan.least_share = float(1.0 - options.guard);
  runtime::AttentionPlan result;
  result.xattention = std::move(plan);
  return result;
}

int64_t prefill_align(const AttentionOptions& options) {
  return is_xattention(options) ? kernels::kQueryBlock : 1;
}

}  // namespace longspur::engine
