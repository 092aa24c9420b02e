#include "engine/device.h"

#include <charconv>

#include "base/error.h"
#include "engine/machine.h"
#include "runtime/cpu_executor.h"
#include "runtime/cpu_weights.h"
#include "runtime/cuda_memory.h"
#include "runtime/plugin.h"

namespace longspur::engine {

namespace {

// Share of the memory that is free which the cache may take unless told otherwise. Host memory is
// shared with everything else that runs; a GPU is mostly the model's own.
constexpr double kHostCacheShare = 0.5;
constexpr double kDeviceCacheShare = 0.9;

int64_t available_memory() {
  const int64_t bytes = meminfo_bytes("MemAvailable:");
  return bytes > 0 ? bytes : int64_t(4) << 30;  // unknown: assume a small machine
}

bool is_fp32(const EngineOptions& options) { return options.compute == Compute::kFp32; }

// Rows of the largest step (sched::Limits).
int64_t most_rows(const EngineOptions& options) {
  const int64_t align = prefill_align(options.attention);
  return options.prefill_chunk + (align > 1 ? align : 0);
}

runtime::CpuExecutorOptions cpu_options(const EngineOptions& options,
                                        const runtime::AttentionPlan& attention,
                                        int64_t max_context) {
  return {is_fp32(options),
          most_rows(options),
          options.max_sequences,
          activation_rule(options.activations),
          options.kv_type == KvStorage::kNVFP4,
          max_context,
          attention};
}

bool has_nvfp4(const models::DecoderTensors& tensors) {
  for (const models::LayerTensors& t : tensors.layers)
    for (const auto* source : {&t.q, &t.k, &t.v, &t.output, &t.gate, &t.up, &t.down})
      if (runtime::cpu_weight_type(*source, false) == DType::kNVFP4) return true;
  return false;
}

runtime::DeviceExecutorOptions cuda_options(const EngineOptions& options,
                                            const runtime::AttentionPlan& attention,
                                            int64_t max_context) {
  return {parse_device(options.device).index,
          is_fp32(options),
          most_rows(options),
          options.max_sequences,
          max_context,
          attention};
}

DeviceMemoryNeeds cuda_needs(const EngineOptions& options,
                             const runtime::AttentionPlan& attention,
                             const io::ModelConfig& config,
                             const models::DecoderTensors& tensors,
                             int64_t max_context) {
  const runtime::DeviceExecutorOptions executor = cuda_options(options, attention, max_context);
  const runtime::DeviceMemory memory = runtime::load_cuda_plugin().memory(executor.device);
  DeviceMemoryNeeds needs;
  needs.weights_bytes = runtime::cuda_weights_bytes(tensors, executor.fp32);
  needs.workspace_bytes = runtime::cuda_workspace_bytes(config, executor);
  needs.page_bytes = runtime::cuda_page_bytes(config, executor.fp32);
  needs.cache_limit = memory.free - needs.weights_bytes - needs.workspace_bytes;
  require(needs.cache_limit > 0, "device cuda:", executor.device, ": found ", memory.free >> 20,
          " MiB free, expected at least ", (needs.weights_bytes + needs.workspace_bytes) >> 20,
          " MiB for weights and workspace");
  needs.cache_share = int64_t(kDeviceCacheShare * double(needs.cache_limit));
  return needs;
}

}  // namespace

Device parse_device(const std::string& text) {
  constexpr const char* kPrefix = "cuda:";
  if (text == "cpu") return {};
  if (text == "cuda") return {true, 0};
  int index = -1;
  if (text.starts_with(kPrefix)) {
    const char* begin = text.data() + std::char_traits<char>::length(kPrefix);
    const char* end = text.data() + text.size();
    const auto [past, error] = std::from_chars(begin, end, index);
    if (error != std::errc() || past != end) index = -1;
  }
  if (index < 0)
    throw UsageError(concat("device: found '", text, "', expected cpu, cuda or cuda:INDEX"));
  return {true, index};
}

std::optional<kernels::nvfp4::Rule> activation_rule(const std::string& activations) {
  constexpr std::string_view kNvfp4 = "nvfp4";
  if (activations == "default") return std::nullopt;
  if (activations == kNvfp4) return kernels::nvfp4::Rule::kFourOverSix;
  if (activations.starts_with(concat(kNvfp4, ":")))
    return kernels::nvfp4::parse_rule(activations.substr(kNvfp4.size() + 1));
  throw UsageError(
      concat("activations: found '", activations, "', expected default, nvfp4 or nvfp4:RULE"));
}

DeviceMemoryNeeds device_memory_needs(const EngineOptions& options,
                                      const runtime::AttentionPlan& attention,
                                      const io::ModelConfig& config,
                                      const models::DecoderTensors& tensors,
                                      int64_t max_context) {
  if (parse_device(options.device).cuda)
    return cuda_needs(options, attention, config, tensors, max_context);
  require(options.activations == "default" || has_nvfp4(tensors), "activations ",
          options.activations, ": found no NVFP4 matrix in the model, expected at least one");
  const runtime::CpuExecutorOptions executor = cpu_options(options, attention, max_context);
  DeviceMemoryNeeds needs;
  needs.weights_bytes = runtime::cpu_weights_bytes(tensors, is_fp32(options));
  needs.workspace_bytes = runtime::cpu_workspace_bytes(config, executor);
  const runtime::CpuCacheNeeds cache = runtime::cpu_cache_needs(config, executor);
  needs.page_bytes = cache.page_bytes;
  needs.side_blocks = cache.side_blocks;
  needs.cache_share = int64_t(kHostCacheShare * double(available_memory()));
  return needs;
}

std::unique_ptr<runtime::Executor> make_executor(const EngineOptions& options,
                                                 const runtime::AttentionPlan& attention,
                                                 const io::ModelConfig& config,
                                                 const models::DecoderTensors& tensors,
                                                 int64_t max_context,
                                                 ThreadPool& pool,
                                                 const std::function<void(int64_t)>& progress) {
  if (parse_device(options.device).cuda) {
    return runtime::load_cuda_plugin().make(
        config, tensors, cuda_options(options, attention, max_context), progress);
  }
  return runtime::make_cpu_executor(config, tensors, cpu_options(options, attention, max_context),
                                    pool, progress);
}

}  // namespace longspur::engine
