#include "runtime/cuda_memory.h"

#include <algorithm>

#include "base/shape.h"
#include "cache/block_manager.h"
#include "kernels/nvfp4/packed_size.h"
#include "runtime/executor.h"

namespace longspur::runtime {

namespace {

// cuBLAS' workspace, the caching allocator's rounding, page-locked staging.
constexpr int64_t kLibraries = int64_t(256) << 20;
// Attention scratch unless a single row of the longest context needs more.
constexpr int64_t kScratchFloats = int64_t(16) << 20;
// Tokens of one piece of a decode (kernels/attention/cuda: kSplitTokens).
constexpr int64_t kSplitTokens = 128;

// Columns of a block of GGUF's NVFP4, the form that rows are read in.
constexpr int64_t kNvfp4Columns = 64;

int64_t element_bytes(bool fp32) { return fp32 ? 4 : 2; }

}  // namespace

bool cuda_keeps_nvfp4(const std::vector<models::TensorSource>& stack, bool fp32) {
  return !fp32 && std::all_of(stack.begin(), stack.end(), [](const models::TensorSource& source) {
    return source.dtype() == DType::kNVFP4 && source.k() % kNvfp4Columns == 0;
  });
}

int64_t cuda_weights_bytes(const models::DecoderTensors& tensors, bool fp32) {
  const auto dense = [&](const models::TensorSource& source) {
    return source ? source.n() * source.k() * element_bytes(fp32) : 0;
  };
  const auto stack = [&](const std::vector<models::TensorSource>& sources) {
    int64_t rows = 0, bytes = 0;
    for (const models::TensorSource& source : sources) {
      rows += source.n();
      bytes += dense(source);
    }
    if (!cuda_keeps_nvfp4(sources, fp32)) return bytes;
    return kernels::nvfp4::packed_bytes(rows, sources[0].k()) + rows * int64_t(sizeof(float));
  };
  int64_t bytes = dense(tensors.embedding);
  if (tensors.head) bytes += stack({tensors.head});
  for (const models::LayerTensors& layer : tensors.layers) {
    bytes += stack({layer.q, layer.k, layer.v}) + stack({layer.output}) +
             stack({layer.gate, layer.up}) + stack({layer.down});
  }
  return bytes;
}

int64_t cuda_page_bytes(const io::ModelConfig& config, bool fp32) {
  return 2 * cache::kBlockTokens * config.head_dim * element_bytes(fp32);
}

CudaActivations cuda_activations(const io::ModelConfig& config,
                                 const DeviceExecutorOptions& options) {
  const int64_t t = options.max_tokens, c = config.hidden, f = config.intermediate,
                attended = config.heads * config.head_dim,
                qkv = attended + 2 * config.kv_heads * config.head_dim;
  CudaActivations a;
  a.hidden = a.picked = a.delta = t * c;
  a.normed = t * std::max(c, attended);
  a.wide = t * std::max(qkv, 2 * f);
  a.inner = t * std::max(attended, f);
  a.logits = Executor::kLogitRows * config.vocab;
  const int64_t splits = round_up(options.max_context, kCudaLengthStep) / kSplitTokens;
  const int64_t row = config.heads * splits * (config.head_dim + 2);
  a.scratch = std::max(kScratchFloats, row);
  return a;
}

int64_t cuda_workspace_bytes(const io::ModelConfig& config, const DeviceExecutorOptions& options) {
  const CudaActivations a = cuda_activations(config, options);
  const int64_t typed = element_bytes(options.fp32);
  const int64_t sampler = 2 * a.logits;  // edited logits, counts
  // Prefill gathers one sequence's keys and values of one layer.
  const int64_t gathered = 2 * options.max_context * config.kv_heads * config.head_dim;
  return 4 * (a.hidden + a.picked + a.logits + a.scratch + sampler) +
         typed * (a.normed + a.wide + a.inner + a.delta + gathered) + kLibraries;
}

}  // namespace longspur::runtime
