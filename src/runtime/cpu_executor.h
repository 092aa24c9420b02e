// CPU executor: weights packed for the machine, one SPMD team, fp32 activations, a paged cache.
#pragma once

#include <functional>
#include <memory>
#include <optional>

#include "base/thread_pool.h"
#include "io/files/model_config.h"
#include "kernels/nvfp4/api.h"
#include "models/decoder_tensors.h"
#include "runtime/attention_plan.h"
#include "runtime/executor.h"

namespace longspur::runtime {

struct CpuExecutorOptions {
  bool fp32 = false;         // reference arithmetic: weights dequantised to fp32, fp32 cache
  int64_t max_tokens = 512;  // of one forward
  int64_t max_sequences = 16;
  // NVFP4 matrices are multiplied with activations quantised to NVFP4 by this rule.
  std::optional<kernels::nvfp4::Rule> nvfp4_activations;
  bool nvfp4_cache = false;  // keys and values in NVFP4; not with fp32
  int64_t max_context = 0;
  AttentionPlan attention = {};
};

// Bytes the packed weights will take, from the tensors' headers alone.
int64_t cpu_weights_bytes(const models::DecoderTensors& tensors, bool fp32);
// Of the cache. side_blocks: blocks that a sequence takes beside those of its tokens. Throws
// UnsupportedError for a head size that the cache's type cannot hold.
struct CpuCacheNeeds {
  int64_t page_bytes = 0, side_blocks = 0;
};
CpuCacheNeeds cpu_cache_needs(const io::ModelConfig& config, const CpuExecutorOptions& options);
int64_t cpu_workspace_bytes(const io::ModelConfig& config, const CpuExecutorOptions& options);

// progress(bytes of stored weights done). Tensors need not outlive the call.
std::unique_ptr<Executor> make_cpu_executor(const io::ModelConfig& config,
                                            const models::DecoderTensors& tensors,
                                            const CpuExecutorOptions& options,
                                            ThreadPool& pool,
                                            const std::function<void(int64_t)>& progress);

}  // namespace longspur::runtime
