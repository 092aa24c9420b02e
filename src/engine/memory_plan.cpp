#include "engine/memory_plan.h"

#include <algorithm>
#include <fstream>
#include <limits>

#include "base/error.h"
#include "base/shape.h"
#include "cache/block_manager.h"
#include "engine/model_bundle.h"
#include "runtime/cpu_executor.h"

namespace longspur::engine {

namespace {

// Share of the memory that is free now which the cache may take unless told otherwise.
constexpr double kCacheShare = 0.5;

int64_t available_memory() {
  std::ifstream file("/proc/meminfo");
  std::string key, unit;
  int64_t kilobytes = 0;
  while (file >> key >> kilobytes) {
    std::getline(file, unit);
    if (key == "MemAvailable:") return kilobytes * 1024;
  }
  return int64_t(4) << 30;  // no such file: assume a small machine
}

void range(const char* name, int64_t value, int64_t low, int64_t high) {
  if (value < low || value > high) {
    throw UsageError(concat(name, ": found ", value, ", expected ", low, " to ", high));
  }
}

}  // namespace

void validate_options(const EngineOptions& options) {
  range("threads", options.threads, 0, 1024);
  range("max-context", options.max_context, 0, int64_t(1) << 24);
  range("max-sequences", options.max_sequences, 1, 4096);
  range("prefill-chunk", options.prefill_chunk, 1, 65536);
  range("kv-bytes", options.kv_bytes, 0, int64_t(1) << 46);
  if (options.device != "cpu") {
    throw UnsupportedError(concat("device '", options.device, "': this build runs on cpu only"));
  }
  if (options.attention != "dense") {
    throw UnsupportedError(
        concat("attention '", options.attention, "': only dense is built so far"));
  }
  if (options.kv_type != KvStorage::kBF16) {
    throw UnsupportedError("kv-type nvfp4: only bf16 is built so far");
  }
}

EnginePlan plan_memory(const EngineOptions& options,
                       const io::ModelConfig& config,
                       const models::DecoderTensors& tensors) {
  const bool fp32 = options.compute == Compute::kFp32;
  EnginePlan plan;
  plan.max_context = options.max_context > 0 ? options.max_context : config.max_position;
  plan.bytes.weights_bytes = runtime::cpu_weights_bytes(tensors, fp32);
  plan.bytes.workspace_bytes =
      runtime::cpu_workspace_bytes(config, {fp32, options.prefill_chunk, options.max_sequences});
  const int64_t page_bytes = runtime::cpu_page_bytes(config, fp32);
  const int64_t block_pages = config.layers * config.kv_heads;
  const int64_t block_bytes = page_bytes * block_pages;
  plan.bytes.kv_bytes_per_token = block_bytes / cache::kBlockTokens;

  const int64_t context_blocks = ceil_div(plan.max_context, cache::kBlockTokens);
  int64_t blocks = context_blocks * options.max_sequences;
  const int64_t budget =
      options.kv_bytes > 0 ? options.kv_bytes : int64_t(kCacheShare * double(available_memory()));
  blocks =
      std::min({blocks, budget / block_bytes, std::numeric_limits<int32_t>::max() / block_pages});
  if (blocks < context_blocks) {
    throw Error(concat("cache: ", budget >> 20, " MiB hold ", blocks * cache::kBlockTokens,
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
