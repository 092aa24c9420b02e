#include "models/torch_decoder.h"

#include <ATen/Functions.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <optional>

#include "base/error.h"
#include "models/rope_params.h"
#include "ops/attention.h"

namespace longspur::models {

namespace {

using TorchWeights = DecoderWeights<TorchLinear, at::Tensor>;
using TorchLayer = DecoderLayer<TorchLinear, at::Tensor>;

class TorchBackend {
 public:
  using Weights = TorchWeights;
  using Act = at::Tensor;

  TorchBackend(const io::ModelConfig& config,
               const at::Tensor& tokens,
               const at::Tensor& cu_seqlens)
      : config_(config), tokens_(tokens), cu_seqlens_(cu_seqlens) {
    const at::Tensor lengths = cu_seqlens.diff();
    max_length_ = lengths.max().item<int64_t>();
    make_rope(lengths);
  }

  Act embed(const TorchLinear& embedding) { return at::embedding(embedding.weight, tokens_); }

  Act rms_norm(const Act& x, const at::Tensor& weight) {
    // In fp32 as transformers does; the weight multiplies after the cast back.
    const at::Tensor wide = x.to(at::kFloat);
    const at::Tensor scale = at::rsqrt(wide.square().mean(-1, true) + config_.rms_eps);
    return weight * (wide * scale).to(x.scalar_type());
  }

  Act swiglu(const Act& x) {
    const auto halves = x.chunk(2, -1);
    return at::silu(halves[0]) * halves[1];
  }

  Act linear(const TorchLinear& w, const Act& x) {
    return w.bias.defined() ? at::linear(x, w.weight, w.bias) : at::linear(x, w.weight);
  }
  Act logits(const TorchLinear& w, const Act& x) { return linear(w, x); }
  Act add_linear(const Act& residual, const TorchLinear& w, const Act& x) {
    return residual + linear(w, x);
  }
  Act outputs(const Act& x) { return x; }  // training wants every row

  Act attention(std::size_t layer, const TorchLayer& w, const Act& qkv) {
    const int64_t window = config_.sliding_window[layer];
    if (window > 0 && max_length_ > window) {
      throw UnsupportedError(concat("training forward: found a sequence of ", max_length_,
                                    " tokens, expected at most layer ", layer,
                                    "'s sliding window of ", window));
    }
    const int64_t h = config_.heads, g = config_.kv_heads, d = config_.head_dim;
    const auto parts = qkv.view({qkv.size(0), h + 2 * g, d}).split_with_sizes({h, g, g}, 1);
    at::Tensor q = parts[0], k = parts[1];
    if (w.q_norm.defined()) q = rms_norm(q, w.q_norm);
    if (w.k_norm.defined()) k = rms_norm(k, w.k_norm);
    const auto [out, lse] = ops::attention(rotate(q), rotate(k), parts[2], cu_seqlens_, cu_seqlens_,
                                           max_length_, max_length_, /*causal=*/true, std::nullopt);
    return out.reshape({out.size(0), h * d});
  }

 private:
  // cos_, sin_: [T, 1, rotary_dim / 2] in the rows' positions.
  void make_rope(const at::Tensor& lengths) {
    const kernels::attention::RopeParams params = rope_params(config_);
    std::vector<at::Tensor> cos, sin;
    const auto counts = lengths.to(at::kLong);
    for (int64_t b = 0; b < counts.numel(); ++b) {
      const int64_t n = counts[b].item<int64_t>();
      auto table = kernels::attention::make_rope_table(params, n, n);
      const auto tensor = [&](std::vector<float>& values) {
        return at::from_blob(values.data(), {n, 1, config_.rotary_dim / 2}, at::kFloat).clone();
      };
      cos.push_back(tensor(table.cos));
      sin.push_back(tensor(table.sin));
    }
    cos_ = at::cat(cos).to(tokens_.device());
    sin_ = at::cat(sin).to(tokens_.device());
  }

  at::Tensor rotate(const at::Tensor& x) const {
    const int64_t half = config_.rotary_dim / 2;
    const at::Tensor cos = cos_.to(x.scalar_type()), sin = sin_.to(x.scalar_type());
    const at::Tensor a = x.narrow(-1, 0, half), b = x.narrow(-1, half, half);
    std::vector<at::Tensor> parts = {a * cos - b * sin, b * cos + a * sin};
    if (config_.rotary_dim < config_.head_dim) {
      parts.push_back(x.narrow(-1, config_.rotary_dim, config_.head_dim - config_.rotary_dim));
    }
    return at::cat(parts, -1);
  }

  const io::ModelConfig& config_;
  at::Tensor tokens_, cu_seqlens_, cos_, sin_;
  int64_t max_length_ = 0;
};

// Builds leaves from stored tensors and remembers which rows carry which name.
class LeafLoader {
 public:
  LeafLoader(at::ScalarType dtype, at::Device device, std::vector<NamedParameter>& parameters)
      : dtype_(dtype), device_(device), parameters_(parameters) {}

  // Stacks `sources` along rows; names[i] is the parameter that sources[i] is.
  at::Tensor leaf(const std::vector<TensorSource>& sources, const std::vector<std::string>& names) {
    std::vector<at::Tensor> parts;
    std::vector<int64_t> begins;
    int64_t rows = 0;
    for (const TensorSource& source : sources) {
      if (!source) return {};
      begins.push_back(rows);
      parts.push_back(read(source));
      rows += parts.back().size(0);
    }
    at::Tensor stacked = at::cat(parts).to(device_, dtype_).requires_grad_(true);
    for (size_t i = 0; i < sources.size(); ++i) {
      parameters_.push_back({names[i], stacked, begins[i], parts[i].size(0)});
    }
    return stacked;
  }

 private:
  static at::Tensor read(const TensorSource& source) {
    if (source.tensor->shape.size() == 1) {
      std::vector<float> values = read_vector(source);
      return at::from_blob(values.data(), {int64_t(values.size())}, at::kFloat).clone();
    }
    const Rows rows = read_rows(source, DType::kF32);
    at::Tensor tensor = at::empty({rows.n, rows.k}, at::kFloat);
    std::memcpy(tensor.data_ptr(), rows.data, size_t(rows.n * rows.k) * sizeof(float));
    return tensor;
  }

  at::ScalarType dtype_;
  at::Device device_;
  std::vector<NamedParameter>& parameters_;
};

std::vector<std::string> prefixed(const std::string& prefix,
                                  const std::vector<std::string>& names) {
  std::vector<std::string> result;
  for (const std::string& name : names) result.push_back(prefix + name);
  return result;
}

TorchLayer load_layer(LeafLoader& loader, const LayerTensors& t, int64_t index) {
  const std::string p = concat("model.layers.", index, ".");
  const auto names = [&](const std::vector<std::string>& list) { return prefixed(p, list); };
  TorchLayer layer;
  layer.attn_norm = loader.leaf({t.attn_norm}, names({"input_layernorm.weight"}));
  layer.qkv.weight = loader.leaf(
      {t.q, t.k, t.v},
      names({"self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"}));
  layer.qkv.bias = loader.leaf(
      {t.q_bias, t.k_bias, t.v_bias},
      names({"self_attn.q_proj.bias", "self_attn.k_proj.bias", "self_attn.v_proj.bias"}));
  layer.q_norm = loader.leaf({t.q_norm}, names({"self_attn.q_norm.weight"}));
  layer.k_norm = loader.leaf({t.k_norm}, names({"self_attn.k_norm.weight"}));
  layer.output.weight = loader.leaf({t.output}, names({"self_attn.o_proj.weight"}));
  layer.output.bias = loader.leaf({t.output_bias}, names({"self_attn.o_proj.bias"}));
  layer.ffn_norm = loader.leaf({t.ffn_norm}, names({"post_attention_layernorm.weight"}));
  layer.gate_up.weight =
      loader.leaf({t.gate, t.up}, names({"mlp.gate_proj.weight", "mlp.up_proj.weight"}));
  layer.gate_up.bias =
      loader.leaf({t.gate_bias, t.up_bias}, names({"mlp.gate_proj.bias", "mlp.up_proj.bias"}));
  layer.down.weight = loader.leaf({t.down}, names({"mlp.down_proj.weight"}));
  layer.down.bias = loader.leaf({t.down_bias}, names({"mlp.down_proj.bias"}));
  return layer;
}

}  // namespace

at::Tensor NamedParameter::grad() const {
  return leaf.grad().defined() ? leaf.grad().narrow(0, begin, rows) : at::Tensor();
}

TorchDecoder::TorchDecoder(const io::ModelConfig& config,
                           const DecoderTensors& tensors,
                           at::ScalarType dtype,
                           at::Device device)
    : config_(config) {
  LeafLoader loader(dtype, device, parameters_);
  weights_.embedding.weight = loader.leaf({tensors.embedding}, {"model.embed_tokens.weight"});
  for (size_t i = 0; i < tensors.layers.size(); ++i) {
    weights_.layers.push_back(load_layer(loader, tensors.layers[i], int64_t(i)));
  }
  weights_.final_norm = loader.leaf({tensors.final_norm}, {"model.norm.weight"});
  weights_.head.weight =
      tensors.head ? loader.leaf({tensors.head}, {"lm_head.weight"}) : weights_.embedding.weight;
}

at::Tensor TorchDecoder::forward(const at::Tensor& tokens, const at::Tensor& cu_seqlens) const {
  require(tokens.scalar_type() == at::kLong && tokens.dim() == 1 && tokens.numel() > 0,
          "tokens: found ", tokens.dim(), "-d ", tokens.scalar_type(),
          ", expected 1-d int64, not empty");
  require(cu_seqlens.scalar_type() == at::kInt && cu_seqlens.dim() == 1 &&
              cu_seqlens.numel() >= 2 && cu_seqlens.device().is_cpu(),
          "cu_seqlens: found ", cu_seqlens.dim(), "-d ", cu_seqlens.scalar_type(),
          ", expected 1-d int32 on the CPU with at least 2 entries");
  TorchBackend backend(config_, tokens, cu_seqlens);
  return decoder_logits(backend, weights_, decoder_hidden(backend, weights_));
}

std::vector<at::Tensor> TorchDecoder::leaves() const {
  std::vector<at::Tensor> result;
  for (const NamedParameter& parameter : parameters_) {
    if (parameter.begin == 0) result.push_back(parameter.leaf);
  }
  return result;
}

}  // namespace longspur::models
