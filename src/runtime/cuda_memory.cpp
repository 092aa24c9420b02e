#include "runtime/cuda_memory.h"

#include <algorithm>

#include "base/shape.h"
#include "cache/block_manager.h"
#include "runtime/executor.h"

namespace longspur::runtime {

namespace {

// cuBLAS' workspace, the caching allocator's rounding, page-locked staging.
constexpr int64_t kLibraries = int64_t(256) << 20;
// Attention scratch unless a single row of the longest context needs more.
constexpr int64_t kScratchFloats = int64_t(16) << 20;
// Tokens of one piece of a decode (kernels/attention/cuda: kSplitTokens).
constexpr int64_t kSplitTokens = 128;

int64_t element_bytes(bool fp32) { return fp32 ? 4 : 2; }

}  // namespace

int64_t cuda_weights_bytes(const models::DecoderTensors& tensors, bool fp32) {
  int64_t elements = 0;
  const auto add = [&](const models::TensorSource& source) {
    if (source) elements += source.n() * source.k();
  };
  add(tensors.embedding);
  add(tensors.head);
  for (const models::LayerTensors& layer : tensors.layers) {
    for (const auto* source :
         {&layer.q, &layer.k, &layer.v, &layer.output, &layer.gate, &layer.up, &layer.down}) {
      add(*source);
    }
  }
  return elements * element_bytes(fp32);
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
