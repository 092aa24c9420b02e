// The decoder's operations on CUDA. The residual stream is fp32 and one tensor a step; what
// products read and write is bf16 (fp32 in reference arithmetic). Decode-sized products and
// everything memory-bound are our kernels, larger products and prefill attention are torch's.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "io/files/model_config.h"
#include "kernels/attention/cuda/paged_cuda.h"
#include "kernels/elementwise/cuda/elementwise_cuda.h"
#include "models/decoder.h"
#include "runtime/executor.h"

namespace longspur::runtime {

struct CudaLinear {
  at::Tensor weight;  // [N, K] bf16 or fp32
  at::Tensor bias;    // [N] fp32 or undefined
};
using CudaWeights = models::DecoderWeights<CudaLinear, at::Tensor>;
using CudaLayer = models::DecoderLayer<CudaLinear, at::Tensor>;

// What all operations of one step share; tensors live on the device.
struct CudaStep {
  const io::ModelConfig* config = nullptr;
  const ForwardBatch* batch = nullptr;
  at::ScalarType type = at::kBFloat16;
  void* stream = nullptr;
  at::Tensor pool;                        // cache pages, bytes
  at::Tensor cos, sin;                    // [position, rotary_dim / 2] fp32
  at::Tensor tokens, sequence, position;  // int32 [T]
  at::Tensor block_table;                 // int32 [layers, B, G, max_blocks]
  at::Tensor partial;                     // decode scratch, fp32
  int64_t max_kv_len = 0;
};

// Floats of decode scratch that the attention of one step needs.
int64_t backend_scratch_floats(const CudaStep& step);

class CudaBackend {
 public:
  using Weights = CudaWeights;
  using Act = at::Tensor;

  explicit CudaBackend(const CudaStep& step) : step_(step) {}

  Act embed(const CudaLinear& embedding);
  Act rms_norm(const Act& hidden, const at::Tensor& weight);
  Act swiglu(const Act& x);
  Act linear(const CudaLinear& w, const Act& x) { return product(w, x, step_.type); }
  Act logits(const CudaLinear& w, const Act& x) { return product(w, x, at::kFloat); }
  // The sum is made by the next rms_norm, in the same pass.
  Act add_linear(const Act& hidden, const CudaLinear& w, const Act& x);
  Act attention(std::size_t layer, const CudaLayer& w, const Act& qkv);
  Act outputs(const Act& x);
  // Adds what add_linear left pending; for the end of a step.
  void settle(const Act& hidden);

 private:
  Act product(const CudaLinear& w, const Act& x, at::ScalarType type);
  void paged_attention(std::size_t layer,
                       int64_t row,
                       int64_t count,
                       int64_t longest,
                       const Act& qkv,
                       const Act& out);
  void prefill_attention(std::size_t layer, std::size_t b, const Act& qkv, const Act& out);
  kernels::attention::cuda::PagedCache cache_of(std::size_t layer) const;
  kernels::elementwise::cuda::Type elementwise_type() const;

  const CudaStep& step_;
  at::Tensor pending_;  // [T, C] not yet added to the residual stream
};

}  // namespace longspur::runtime
