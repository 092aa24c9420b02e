#include "models/decoder_tensors.h"

#include <cmath>
#include <cstring>
#include <map>

#include "base/error.h"
#include "base/half.h"

namespace longspur::models {

namespace {

struct Names {
  std::string embedding, final_norm, head, layer;  // layer: prefix, the index follows
  std::map<std::string, std::string> roles;
};

const Names kHfNames = {
    "model.embed_tokens.weight",
    "model.norm.weight",
    "lm_head.weight",
    "model.layers.",
    {{"attn_norm", "input_layernorm"},
     {"q", "self_attn.q_proj"},
     {"k", "self_attn.k_proj"},
     {"v", "self_attn.v_proj"},
     {"q_norm", "self_attn.q_norm"},
     {"k_norm", "self_attn.k_norm"},
     {"output", "self_attn.o_proj"},
     {"ffn_norm", "post_attention_layernorm"},
     {"gate", "mlp.gate_proj"},
     {"up", "mlp.up_proj"},
     {"down", "mlp.down_proj"}},
};

const Names kGgufNames = {
    "token_embd.weight",
    "output_norm.weight",
    "output.weight",
    "blk.",
    {{"attn_norm", "attn_norm"},
     {"q", "attn_q"},
     {"k", "attn_k"},
     {"v", "attn_v"},
     {"q_norm", "attn_q_norm"},
     {"k_norm", "attn_k_norm"},
     {"output", "attn_output"},
     {"ffn_norm", "ffn_norm"},
     {"gate", "ffn_gate"},
     {"up", "ffn_up"},
     {"down", "ffn_down"}},
};

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

// Types that a weight may have: those whose bits say a real number.
bool is_weight_type(DType dtype) {
  switch (dtype) {
    case DType::kI64:
    case DType::kI32:
    case DType::kI16:
    case DType::kI8:
    case DType::kU64:
    case DType::kU32:
    case DType::kU16:
    case DType::kU8:
    case DType::kBool:
    case DType::kF8E8M0:
    case DType::kF6E2M3:
    case DType::kF6E3M2:
    case DType::kF4:
    case DType::kC64:
      return false;
    default:
      return true;
  }
}

// Looks tensors up and collects everything that is wrong.
class Finder {
 public:
  Finder(const io::TensorFile& file, const Names& names) : file_(file), names_(names) {}

  TensorSource get(const std::string& name,
                   const std::vector<int64_t>& shape,
                   bool required = true) {
    const io::TensorInfo* tensor = file_.find(name);
    if (tensor == nullptr) {
      if (required) problem(name + " (missing)");
      return {};
    }
    if (tensor->shape != shape) {
      problem(concat(name, " (found ", shape_text(tensor->shape), ", expected ", shape_text(shape),
                     ")"));
      return {};
    }
    if (!is_weight_type(tensor->dtype)) {
      problem(concat(name, " (found type ", dtype_info(tensor->dtype).name,
                     ", expected a floating-point or GGUF block type)"));
      return {};
    }
    return {tensor, 0, scale_of(name)};
  }

  TensorSource layer(int64_t index,
                     const char* role,
                     const char* kind,
                     const std::vector<int64_t>& shape,
                     bool required = true) {
    return get(concat(names_.layer, index, ".", names_.roles.at(role), kind), shape, required);
  }

  void finish() const {
    if (count_ == 0) return;
    throw Error(concat(file_.path(), ": ", count_, " tensor", count_ == 1 ? "" : "s",
                       " missing or of the wrong shape or type: ", problems_,
                       count_ > kListed ? ", ..." : ""));
  }

 private:
  static constexpr int kListed = 64;  // names in one message; a hostile file may miss thousands

  // "blk.0.attn_q.scale" beside "blk.0.attn_q.weight"
  float scale_of(const std::string& name) {
    constexpr std::string_view kWeight = ".weight";
    if (!name.ends_with(kWeight)) return 1.0f;
    const std::string scale_name = name.substr(0, name.size() - kWeight.size()) + ".scale";
    const io::TensorInfo* scale = file_.find(scale_name);
    if (scale == nullptr) return 1.0f;
    float value = 0.0f;
    if (scale->dtype == DType::kF32 && scale->elements() == 1)
      io::dequantize(scale->dtype, scale->data.data(), 1, &value);
    if (!std::isfinite(value) || value <= 0.0f)
      problem(scale_name + " (expected one positive number of type F32)");
    return value;
  }

  void problem(const std::string& text) {
    if (count_++ < kListed) problems_ += (problems_.empty() ? "" : ", ") + text;
  }

  const io::TensorFile& file_;
  const Names& names_;
  std::string problems_;
  int count_ = 0;
};

LayerTensors find_layer(Finder& finder, const io::ModelConfig& c, int64_t i) {
  const int64_t q_rows = c.heads * c.head_dim, kv_rows = c.kv_heads * c.head_dim;
  LayerTensors layer;
  layer.attn_norm = finder.layer(i, "attn_norm", ".weight", {c.hidden});
  layer.q = finder.layer(i, "q", ".weight", {q_rows, c.hidden});
  layer.k = finder.layer(i, "k", ".weight", {kv_rows, c.hidden});
  layer.v = finder.layer(i, "v", ".weight", {kv_rows, c.hidden});
  layer.q_norm = finder.layer(i, "q_norm", ".weight", {c.head_dim}, c.qk_norm);
  layer.k_norm = finder.layer(i, "k_norm", ".weight", {c.head_dim}, c.qk_norm);
  layer.output = finder.layer(i, "output", ".weight", {c.hidden, q_rows});
  layer.ffn_norm = finder.layer(i, "ffn_norm", ".weight", {c.hidden});
  layer.gate = finder.layer(i, "gate", ".weight", {c.intermediate, c.hidden});
  layer.up = finder.layer(i, "up", ".weight", {c.intermediate, c.hidden});
  layer.down = finder.layer(i, "down", ".weight", {c.hidden, c.intermediate});
  // A bias that is there is used whether or not the configuration announces it.
  layer.q_bias = finder.layer(i, "q", ".bias", {q_rows}, c.qkv_bias);
  layer.k_bias = finder.layer(i, "k", ".bias", {kv_rows}, c.qkv_bias);
  layer.v_bias = finder.layer(i, "v", ".bias", {kv_rows}, c.qkv_bias);
  layer.output_bias = finder.layer(i, "output", ".bias", {c.hidden}, c.output_bias);
  layer.gate_bias = finder.layer(i, "gate", ".bias", {c.intermediate}, c.mlp_bias);
  layer.up_bias = finder.layer(i, "up", ".bias", {c.intermediate}, c.mlp_bias);
  layer.down_bias = finder.layer(i, "down", ".bias", {c.hidden}, c.mlp_bias);
  if (c.permuted_qk) {
    layer.q.permuted_heads = layer.q_bias.permuted_heads = c.heads;
    layer.k.permuted_heads = layer.k_bias.permuted_heads = c.kv_heads;
  }
  return layer;
}

// Stored row of the model's row `row`.
int64_t stored_row(const TensorSource& source, int64_t row) {
  if (source.permuted_heads == 0) return row;
  const int64_t dim = source.n() / source.permuted_heads;
  const int64_t head = row / dim, half = row % dim / (dim / 2), j = row % (dim / 2);
  return head * dim + 2 * j + half;
}

}  // namespace

DecoderTensors find_decoder_tensors(const io::TensorFile& file, const io::ModelConfig& config) {
  const bool gguf =
      file.find(kHfNames.embedding) == nullptr && file.find(kGgufNames.embedding) != nullptr;
  const Names& names = gguf ? kGgufNames : kHfNames;
  Finder finder(file, names);
  DecoderTensors tensors;
  tensors.embedding = finder.get(names.embedding, {config.vocab, config.hidden});
  tensors.final_norm = finder.get(names.final_norm, {config.hidden});
  if (!config.tied_embeddings) tensors.head = finder.get(names.head, {config.vocab, config.hidden});
  for (int64_t i = 0; i < config.layers; ++i)
    tensors.layers.push_back(find_layer(finder, config, i));
  finder.finish();
  return tensors;
}

Rows read_rows(const TensorSource& source, DType as) {
  const io::TensorInfo& tensor = *source.tensor;
  Rows rows{as, source.n(), source.k(), nullptr, {}, 1.0f};
  const int64_t stored_bytes = dtype_bytes(tensor.dtype, rows.k);
  const bool nvfp4 = as == DType::kNVFP4;  // its multiplier stays beside the blocks
  const bool as_stored = as == tensor.dtype && (nvfp4 || source.scale == 1.0f);
  if (nvfp4) rows.scale = source.scale;
  if (as_stored && source.permuted_heads == 0) {
    rows.data = tensor.data.data();
    return rows;
  }
  const int64_t row_bytes = dtype_bytes(as, rows.k);
  rows.storage.resize(size_t(rows.n * row_bytes));
  rows.data = rows.storage.data();
  std::vector<float> values(size_t(as_stored ? 0 : rows.k));
  for (int64_t row = 0; row < rows.n; ++row) {
    const std::byte* from = tensor.data.data() + stored_row(source, row) * stored_bytes;
    std::byte* to = rows.storage.data() + row * row_bytes;
    if (as_stored) {
      std::memcpy(to, from, size_t(row_bytes));
      continue;
    }
    LONGSPUR_ASSERT(as == DType::kF32 || as == DType::kBF16);
    io::dequantize(tensor.dtype, from, rows.k, values.data());
    if (source.scale != 1.0f)
      for (float& value : values) value *= source.scale;
    if (as == DType::kF32) {
      std::memcpy(to, values.data(), size_t(row_bytes));
    } else {
      for (size_t i = 0; i < values.size(); ++i) {
        const uint16_t bits = float_to_bf16(values[i]);
        std::memcpy(to + 2 * i, &bits, 2);
      }
    }
  }
  return rows;
}

std::vector<float> read_vector(const TensorSource& source) {
  if (!source) return {};
  const int64_t n = source.n();
  std::vector<float> stored(size_t(n), 0.0f), values(size_t(n), 0.0f);
  io::dequantize(source.tensor->dtype, source.tensor->data.data(), n, stored.data());
  for (int64_t row = 0; row < n; ++row)
    values[size_t(row)] = stored[size_t(stored_row(source, row))] * source.scale;
  return values;
}

}  // namespace longspur::models
