// The decoder's operations on CUDA. The residual stream is fp32; what products read and write is
// bf16 (fp32 in reference arithmetic). Decode-sized products and everything memory-bound are our
// kernels, larger products and prefill attention are torch's. Activations have fixed places, so a
// step of the same shape is the same launches: it can be recorded and replayed.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Event.h>
#include <c10/core/Stream.h>

#include <cstdint>
#include <utility>
#include <vector>

#include "io/files/model_config.h"
#include "kernels/attention/cuda/paged_cuda.h"
#include "kernels/elementwise/cuda/elementwise_cuda.h"
#include "models/decoder.h"
#include "runtime/executor.h"

namespace longspur::runtime {

// Either dense or NVFP4.
struct CudaLinear {
  at::Tensor weight;      // [N, K] bf16 or fp32
  at::Tensor bias;        // [N] fp32 or undefined
  at::Tensor packed;      // bytes, kernels/nvfp4/packed_size.h
  at::Tensor multiplier;  // [N] fp32
  int64_t n = 0, k = 0;

  bool is_nvfp4() const { return packed.defined(); }
  int64_t bytes() const {
    return is_nvfp4() ? int64_t(packed.nbytes() + multiplier.nbytes()) : int64_t(weight.nbytes());
  }
};
using CudaWeights = models::DecoderWeights<CudaLinear, at::Tensor>;
using CudaLayer = models::DecoderLayer<CudaLinear, at::Tensor>;

// Seconds between pairs of points on a stream, read once the device has passed them.
class CudaTimer {
 public:
  void begin(const c10::Stream& stream);
  void end(const c10::Stream& stream);
  double seconds();  // since the last reset; waits for the device
  void reset();

 private:
  static constexpr std::size_t kMostPending = 4096;
  void settle();
  std::vector<std::pair<c10::Event, c10::Event>> pending_;
  double seconds_ = 0;
};

// What all operations of one step share. Pointers are device pointers; the buffers' sizes are
// CudaActivations'.
struct CudaStep {
  const io::ModelConfig* config = nullptr;
  const ForwardBatch* batch = nullptr;
  at::ScalarType type = at::kBFloat16;
  at::Device device = at::kCUDA;
  void* stream = nullptr;
  int64_t t = 0;
  int64_t max_blocks = 0;  // stride of the device's block table
  int64_t max_kv_len = 0;  // bound of the batch's
  int64_t scratch_floats = 0;
  CudaTimer* attention_timer = nullptr;  // of attention with rows of prompts; null: not timed

  void* pool = nullptr;                                  // cache pages
  const float *cos = nullptr, *sin = nullptr;            // [row, rotary_dim / 2]
  const int32_t* table_start = nullptr;                  // [B] or null: RopeAppendArgs
  const int32_t *tokens = nullptr, *sequence = nullptr;  // [T]
  const int32_t* position = nullptr;                     // [T]
  const int32_t* output_rows = nullptr;                  // [R]
  const int32_t* block_table = nullptr;                  // [layers, B, G, max_blocks]

  float *hidden = nullptr, *picked = nullptr, *logits = nullptr, *scratch = nullptr;
  void *normed = nullptr, *wide = nullptr, *inner = nullptr, *delta = nullptr;
};

// [rows, width] of `type`. A value of linear() is not computed yet: `weight` is what `data` is
// still to be multiplied by, because what comes next may do it on the way.
struct CudaAct {
  void* data = nullptr;
  int64_t rows = 0, width = 0;
  at::ScalarType type = at::kBFloat16;
  const CudaLinear* weight = nullptr;
};

class CudaBackend {
 public:
  using Weights = CudaWeights;
  using Act = CudaAct;

  explicit CudaBackend(const CudaStep& step) : step_(step) {}

  Act embed(const CudaLinear& embedding);
  Act rms_norm(const Act& hidden, const at::Tensor& weight);
  Act linear(const CudaLinear& weight, const Act& x);
  Act swiglu(const Act& x);
  Act logits(const CudaLinear& weight, const Act& x);  // x.rows <= kLogitRows
  // The sum is made by the next rms_norm, in the same pass.
  Act add_linear(const Act& hidden, const CudaLinear& weight, const Act& x);
  Act attention(std::size_t layer, const CudaLayer& weights, const Act& qkv);
  Act outputs(const Act& x);
  // Adds what add_linear left pending; for the end of a step.
  void settle(const Act& hidden);

 private:
  Act typed(void* data, int64_t rows, int64_t width) const {
    return {data, rows, width, step_.type, nullptr};
  }
  bool is_small(const Act& x) const;
  at::Tensor view(const Act& x) const;
  void product(const CudaLinear& weight, const Act& x, const Act& y);
  void nvfp4_product(const CudaLinear& weight, const Act& x, const Act& y);
  void small_product(const CudaLinear& weight, const Act& x, const Act& y, bool with_swiglu);
  void rope_append(std::size_t layer, const CudaLayer& weights, const Act& qkv);
  void paged_attention(
      std::size_t layer, int64_t row, int64_t count, const Act& qkv, const Act& out);
  void prefill_attention(std::size_t layer, std::size_t b, const Act& qkv, const Act& out);
  kernels::attention::cuda::PagedCache cache_of(std::size_t layer) const;
  kernels::elementwise::cuda::Type elementwise_type(at::ScalarType type) const;

  const CudaStep& step_;
  bool pending_ = false;  // step_.delta is not yet added to the residual stream
};

// True when every operation of the step is a launch of ours, so that the step can be recorded.
bool only_launches(const CudaStep& step);

}  // namespace longspur::runtime
