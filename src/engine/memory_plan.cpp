#include "engine/memory_plan.h"

#include <algorithm>
#include <limits>

#include "base/error.h"
#include "base/shape.h"
#include "cache/block_manager.h"
#include "engine/device.h"
#include "engine/model_bundle.h"

namespace longspur::engine {

namespace {

void range(const char* name, int64_t value, int64_t low, int64_t high) {
  if (value < low || value > high) {
    throw UsageError(concat(name, ": found ", value, ", expected ", low, " to ", high));
  }
}

// Activations are NVFP4 in the products of the CPU backend only, and never in reference arithmetic.
void validate_activations(const EngineOptions& options) {
  if (!activation_rule(options.activations)) return;
  if (options.compute == Compute::kFp32)
    throw UsageError(concat("activations ", options.activations,
                            ": found compute fp32, which multiplies in fp32, expected default"));
  if (parse_device(options.device).cuda)
    throw UnsupportedError(concat("activations ", options.activations, ": found device ",
                                  options.device, ", expected cpu"));
}

// Keys and values are NVFP4 in the CPU backend only, and never in reference arithmetic.
void validate_cache(const EngineOptions& options) {
  if (options.kv_type != KvStorage::kNVFP4) return;
  if (options.compute == Compute::kFp32)
    throw UsageError("kv-type nvfp4: found compute fp32, whose cache is fp32, expected default");
  if (parse_device(options.device).cuda)
    throw UnsupportedError(
        concat("kv-type nvfp4: found device ", options.device, ", expected cpu"));
}

void validate_attention(const EngineOptions& options) {
  validate(options.attention);
  if (options.attention.kind != "dense" && parse_device(options.device).cuda)
    throw UnsupportedError(concat("attention ", options.attention.kind, ": found device ",
                                  options.device, ", expected cpu"));
}

}  // namespace

void validate_options(const EngineOptions& options) {
  range("threads", options.threads, 0, 1024);
  range("max-context", options.max_context, 0, int64_t(1) << 24);
  range("max-sequences", options.max_sequences, 1, 4096);
  range("prefill-chunk", options.prefill_chunk, 1, 65536);
  range("kv-bytes", options.kv_bytes, 0, int64_t(1) << 46);
  parse_device(options.device);
  validate_activations(options);
  validate_attention(options);
  validate_cache(options);
}

int64_t context_of(const EngineOptions& options, const io::ModelConfig& config) {
  return options.max_context > 0 ? options.max_context : io::default_context(config);
}

EnginePlan plan_memory(const EngineOptions& options,
                       const io::ModelConfig& config,
                       const models::DecoderTensors& tensors) {
  EnginePlan plan;
  plan.max_context = context_of(options, config);
  plan.attention = attention_plan(options.attention, config);
  const DeviceMemoryNeeds needs =
      device_memory_needs(options, plan.attention, config, tensors, plan.max_context);
  plan.bytes.weights_bytes = needs.weights_bytes;
  plan.bytes.workspace_bytes = needs.workspace_bytes;
  const int64_t block_pages = config.layers * config.kv_heads;
  const int64_t block_bytes = needs.page_bytes * block_pages;
  plan.bytes.kv_bytes_per_token = block_bytes / cache::kBlockTokens;

  plan.side_blocks = needs.side_blocks;
  const int64_t context_blocks =
      ceil_div(plan.max_context, cache::kBlockTokens) + needs.side_blocks;
  int64_t blocks = context_blocks * options.max_sequences;
  const int64_t budget = options.kv_bytes > 0 ? options.kv_bytes : needs.cache_share;
  require(needs.cache_limit == 0 || options.kv_bytes <= needs.cache_limit, "kv-bytes: found ",
          options.kv_bytes, ", expected at most the ", needs.cache_limit, " that device '",
          options.device, "' has free beside the weights");
  blocks =
      std::min({blocks, budget / block_bytes, std::numeric_limits<int32_t>::max() / block_pages});
  if (blocks < context_blocks) {
    const int64_t usable = std::max<int64_t>(0, blocks - needs.side_blocks);
    throw Error(concat("cache: ", budget >> 20, " MiB hold ", usable * cache::kBlockTokens,
                       " tokens, expected at least one context of ", plan.max_context,
                       "; lower --max-context"));
  }
  plan.pages = blocks * block_pages;
  plan.bytes.kv_bytes = blocks * block_bytes;
  return plan;
}

MemoryPlan plan_memory(const EngineOptions& options) {
  validate_options(options);
  const ModelBundle model = open_model(options.model, false);
  return plan_memory(options, model.config, model.tensors).bytes;
}

}  // namespace longspur::engine
