// CUDA executor: weights, cache and activations on one device; see cuda_backend.h for the
// operations.
#include <ATen/Functions.h>
#include <c10/core/InferenceMode.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <algorithm>
#include <cstring>

#include "base/error.h"
#include "base/shape.h"
#include "models/rope_params.h"
#include "runtime/cuda_backend.h"
#include "runtime/plugin.h"

namespace longspur::runtime {

namespace paged = kernels::attention::cuda;

namespace {

class CudaExecutor final : public Executor {
 public:
  CudaExecutor(const io::ModelConfig& config,
               const models::DecoderTensors& tensors,
               const DeviceExecutorOptions& options,
               const std::function<void(int64_t)>& progress)
      : config_(config),
        options_(options),
        device_(at::kCUDA, c10::DeviceIndex(options.device)),
        rope_(models::rope_params(config)),
        progress_(progress) {
    const c10::impl::VirtualGuardImpl guard(at::kCUDA);
    require(options.device < guard.deviceCount(), "device cuda:", options.device, ": found ",
            int(guard.deviceCount()), " CUDA devices");
    if (config.head_dim % 8 != 0 || config.head_dim > 256) {
      throw UnsupportedError(concat("device cuda: head size ", config.head_dim,
                                    ", expected a multiple of 8 up to 256"));
    }
    const c10::InferenceMode inference;
    load(tensors);
    host_logits_ =
        at::empty({kLogitRows, config.vocab}, at::TensorOptions(at::kFloat).pinned_memory(true));
  }

  int64_t weights_bytes() const override { return weights_bytes_; }
  int64_t workspace_bytes() const override {
    return step_.partial.defined() ? int64_t(step_.partial.nbytes()) : 0;
  }
  int64_t page_bytes() const override {
    return 2 * paged::kPageTokens * config_.head_dim * int64_t(c10::elementSize(type()));
  }

  void allocate_pages(int64_t pages) override {
    step_.pool = at::empty({pages * page_bytes()}, at::TensorOptions(at::kByte).device(device_));
  }

  void forward(const ForwardBatch& batch) override {
    const c10::InferenceMode inference;
    upload(batch);
    CudaBackend backend(step_);
    hidden_ = models::decoder_hidden(backend, weights_);
    backend.settle(hidden_);
  }

  const float* logits(int64_t first, int64_t count) override {
    LONGSPUR_ASSERT(count <= kLogitRows && first + count <= hidden_.size(0));
    const c10::InferenceMode inference;
    CudaBackend backend(step_);
    const at::Tensor rows =
        models::decoder_logits(backend, weights_, hidden_.narrow(0, first, count));
    host_logits_.narrow(0, 0, count).copy_(rows);  // pinned, blocking: the step ends here
    return host_logits_.const_data_ptr<float>();
  }

 private:
  at::ScalarType type() const { return options_.fp32 ? at::kFloat : at::kBFloat16; }

  at::Tensor stacked(const std::vector<models::TensorSource>& sources) {
    const DType as = options_.fp32 ? DType::kF32 : DType::kBF16;
    int64_t rows = 0;
    for (const auto& source : sources) rows += source.n();
    const at::Tensor result =
        at::empty({rows, sources[0].k()}, at::TensorOptions(type()).device(device_));
    int64_t at_row = 0;
    for (const auto& source : sources) {
      const models::Rows data = models::read_rows(source, as);
      const at::Tensor host =
          at::from_blob(const_cast<std::byte*>(data.data), {data.n, data.k}, type());
      result.narrow(0, at_row, data.n).copy_(host);
      at_row += data.n;
      done_ += int64_t(source.tensor->data.size());
      if (progress_) progress_(done_);
    }
    weights_bytes_ += int64_t(result.nbytes());
    return result;
  }

  at::Tensor vector(const models::TensorSource& source) const {
    if (!source) return {};
    std::vector<float> values = models::read_vector(source);
    return at::tensor(values).to(device_);
  }

  CudaLinear linear(const std::vector<models::TensorSource>& sources,
                    const std::vector<models::TensorSource>& biases) {
    CudaLinear result{stacked(sources), {}};
    const bool any =
        std::any_of(biases.begin(), biases.end(), [](const auto& b) { return bool(b); });
    if (!any) return result;
    std::vector<at::Tensor> parts;
    for (size_t i = 0; i < sources.size(); ++i) {
      parts.push_back(
          biases[i] ? vector(biases[i])
                    : at::zeros({sources[i].n()}, at::TensorOptions(at::kFloat).device(device_)));
    }
    result.bias = at::cat(parts);
    return result;
  }

  void load(const models::DecoderTensors& tensors) {
    weights_.embedding = linear({tensors.embedding}, {});
    weights_.head = tensors.head ? linear({tensors.head}, {}) : weights_.embedding;
    weights_.final_norm = vector(tensors.final_norm);
    for (const models::LayerTensors& t : tensors.layers) {
      CudaLayer& layer = weights_.layers.emplace_back();
      layer.attn_norm = vector(t.attn_norm);
      layer.qkv = linear({t.q, t.k, t.v}, {t.q_bias, t.k_bias, t.v_bias});
      layer.q_norm = vector(t.q_norm);
      layer.k_norm = vector(t.k_norm);
      layer.output = linear({t.output}, {t.output_bias});
      layer.ffn_norm = vector(t.ffn_norm);
      layer.gate_up = linear({t.gate, t.up}, {t.gate_bias, t.up_bias});
      layer.down = linear({t.down}, {t.down_bias});
    }
  }

  at::Tensor to_device(std::span<const int32_t> values) const {
    return at::tensor(at::ArrayRef<int32_t>(values.data(), values.size()), at::kInt).to(device_);
  }

  void upload(const ForwardBatch& batch) {
    step_.config = &config_;
    step_.batch = &batch;
    step_.type = type();
    step_.stream = c10::impl::VirtualGuardImpl(at::kCUDA).getStream(device_).native_handle();
    const auto sequences = int64_t(batch.kv_lens.size());
    std::vector<int32_t> sequence, position;
    step_.max_kv_len = 0;
    for (size_t b = 0; b < batch.kv_lens.size(); ++b) {
      const int32_t rows = batch.cu_seqlens[b + 1] - batch.cu_seqlens[b];
      for (int32_t i = 0; i < rows; ++i) {
        sequence.push_back(int32_t(b));
        position.push_back(batch.kv_lens[b] - rows + i);
      }
      step_.max_kv_len = std::max<int64_t>(step_.max_kv_len, batch.kv_lens[b]);
    }
    step_.tokens = to_device(batch.tokens);
    step_.sequence = to_device(sequence);
    step_.position = to_device(position);
    step_.block_table = to_device(batch.block_table)
                            .view({config_.layers, sequences, config_.kv_heads, batch.max_blocks});
    prepare_rope(batch);
    const int64_t scratch = backend_scratch_floats(step_);
    if (!step_.partial.defined() || step_.partial.numel() < scratch) {
      step_.partial = at::empty({scratch}, at::TensorOptions(at::kFloat).device(device_));
    }
  }

  void prepare_rope(const ForwardBatch& batch) {
    const bool dynamic = rope_.kind == kernels::attention::RopeKind::kDynamic;
    if (dynamic && batch.kv_lens.size() > 1) {
      throw UnsupportedError("device cuda: dynamic rope scaling with several sequences in flight");
    }
    if (!dynamic && step_.max_kv_len <= rope_positions_) return;
    rope_positions_ = round_up(step_.max_kv_len, 1024);
    auto table = kernels::attention::make_rope_table(
        rope_, rope_positions_, dynamic ? batch.rope_lens[0] : rope_positions_);
    step_.cos = at::tensor(table.cos).to(device_);
    step_.sin = at::tensor(table.sin).to(device_);
  }

  io::ModelConfig config_;
  DeviceExecutorOptions options_;
  at::Device device_;
  kernels::attention::RopeParams rope_;
  std::function<void(int64_t)> progress_;
  CudaWeights weights_;
  CudaStep step_;
  at::Tensor hidden_, host_logits_;
  int64_t rope_positions_ = 0;
  int64_t weights_bytes_ = 0, done_ = 0;
};

}  // namespace

}  // namespace longspur::runtime

extern "C" std::unique_ptr<longspur::runtime::Executor> longspur_make_cuda_executor(
    const longspur::io::ModelConfig& config,
    const longspur::models::DecoderTensors& tensors,
    const longspur::runtime::DeviceExecutorOptions& options,
    const std::function<void(int64_t)>& progress) {
  return std::make_unique<longspur::runtime::CudaExecutor>(config, tensors, options, progress);
}
