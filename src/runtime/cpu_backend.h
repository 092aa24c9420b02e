// The decoder's operations on CPU: fused kernels on raw fp32 activations, run by every thread of
// one team. A CpuBackend is one thread's view of a step; the buffers behind it are shared.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "base/aligned_buffer.h"
#include "base/thread_pool.h"
#include "kernels/attention/paged.h"
#include "kernels/qgemm/api.h"
#include "models/decoder.h"
#include "runtime/cpu_xattention.h"
#include "runtime/executor.h"

namespace longspur::runtime {

// A product's weights: matrices stacked along N, one packed matrix where their types agree.
struct CpuLinear {
  std::vector<std::shared_ptr<const kernels::qgemm::PackedWeight>> parts;
  std::vector<float> bias;  // [N] or empty
  int64_t n = 0, k = 0;
};
using CpuVector = std::vector<float>;
using CpuWeights = models::DecoderWeights<CpuLinear, CpuVector>;
using CpuLayer = models::DecoderLayer<CpuLinear, CpuVector>;

// Sizes of the decoder that the operations need.
struct CpuModelShape {
  int64_t hidden, intermediate, heads, kv_heads, head_dim, rotary_dim;
  float rms_eps;
  std::vector<int64_t> window;  // of each layer; 0: full attention
};

// Shared by the team for one step. Activations are [max_tokens, width] fp32.
struct CpuStep {
  const CpuModelShape* shape = nullptr;
  const ForwardBatch* batch = nullptr;
  std::byte* pool = nullptr;  // cache pages
  kernels::attention::KvType kv_type = kernels::attention::KvType::kBF16;
  const float* rope_cos = nullptr;  // [position, rotary_dim / 2]; null: one table a sequence
  const float* rope_sin = nullptr;
  const std::vector<std::vector<float>>* sequence_rope =
      nullptr;                // dynamic scaling: cos, sin, cos, ...
  float* hidden = nullptr;    // [T, C]
  float* wide = nullptr;      // [T, max((H + 2 G) D, 2 F)]
  float* attended = nullptr;  // [T, H D]
  float* logits = nullptr;    // [kLogitRows, V]
  kernels::qgemm::ActPrecision precision = kernels::qgemm::ActPrecision::kInt8Peak;
  kernels::nvfp4::Rule act_rule = kernels::nvfp4::Rule::kFourOverSix;
  std::byte* matmul_workspace = nullptr;
  std::byte* attention_workspace = nullptr;
  CpuXattention* xattention = nullptr;  // null: dense
  double* attention_s = nullptr;        // of all layers, added up by rank 0
};

class CpuBackend {
 public:
  using Weights = CpuWeights;
  struct Act {
    float* data;
    int64_t rows, width;
  };
  struct Operand {  // an activation and what happens to it as the product reads it
    Act act;
    kernels::qgemm::Input input;
    const CpuVector* norm;
  };

  CpuBackend(Team& team, const CpuStep& step) : team_(team), step_(step) {}

  Act embed(const CpuLinear& embedding);
  Operand rms_norm(const Act& x, const CpuVector& weight) {
    return {x, kernels::qgemm::Input::kRmsNorm, &weight};
  }
  Operand swiglu(const Act& x) { return {x, kernels::qgemm::Input::kSwiGlu, nullptr}; }
  Act linear(const CpuLinear& weight, const Operand& x);
  Act add_linear(const Act& residual, const CpuLinear& weight, const Operand& x);
  Act add_linear(const Act& residual, const CpuLinear& weight, const Act& x) {
    return add_linear(residual, weight, Operand{x, kernels::qgemm::Input::kPlain, nullptr});
  }
  Act attention(std::size_t layer, const CpuLayer& weights, const Act& qkv);
  Act outputs(const Act& x);
  Act logits(const CpuLinear& weight, const Operand& x);  // x.rows <= kLogitRows

 private:
  void product(const CpuLinear& weight, const Operand& x, const Act& y, bool accumulate);
  void append(const kernels::attention::RopeAppendArgs& args,
              const kernels::attention::PagedKv& kv);

  Team& team_;
  const CpuStep& step_;
};

}  // namespace longspur::runtime
