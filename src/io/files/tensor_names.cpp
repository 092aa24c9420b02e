#include "io/files/tensor_names.h"

#include <charconv>

#include "base/error.h"

namespace longspur::io {

namespace {

using Part = TensorRole::Part;

struct Names {
  Part part;
  std::string_view hf, gguf;
};

constexpr std::string_view kHfLayer = "model.layers.", kGgufLayer = "blk.";

constexpr Names kWhole[] = {{Part::kEmbedding, "model.embed_tokens", "token_embd"},
                            {Part::kFinalNorm, "model.norm", "output_norm"},
                            {Part::kHead, "lm_head", "output"}};

constexpr Names kOfLayer[] = {{Part::kAttnNorm, "input_layernorm", "attn_norm"},
                              {Part::kQ, "self_attn.q_proj", "attn_q"},
                              {Part::kK, "self_attn.k_proj", "attn_k"},
                              {Part::kV, "self_attn.v_proj", "attn_v"},
                              {Part::kQNorm, "self_attn.q_norm", "attn_q_norm"},
                              {Part::kKNorm, "self_attn.k_norm", "attn_k_norm"},
                              {Part::kOutput, "self_attn.o_proj", "attn_output"},
                              {Part::kFfnNorm, "post_attention_layernorm", "ffn_norm"},
                              {Part::kGate, "mlp.gate_proj", "ffn_gate"},
                              {Part::kUp, "mlp.up_proj", "ffn_up"},
                              {Part::kDown, "mlp.down_proj", "ffn_down"}};

std::string_view name_in(NameStyle style, const Names& names) {
  return style == NameStyle::kHf ? names.hf : names.gguf;
}

}  // namespace

std::string tensor_name(NameStyle style, const TensorRole& role) {
  const char* kind = role.bias ? ".bias" : ".weight";
  for (const Names& names : kWhole)
    if (names.part == role.part) return concat(name_in(style, names), kind);
  for (const Names& names : kOfLayer)
    if (names.part == role.part)
      return concat(style == NameStyle::kHf ? kHfLayer : kGgufLayer, role.layer, ".",
                    name_in(style, names), kind);
  throw InternalError("tensor_name: found a value outside the enum");
}

std::optional<TensorRole> tensor_role(NameStyle style, std::string_view name) {
  TensorRole role;
  role.bias = name.ends_with(".bias");
  if (!role.bias && !name.ends_with(".weight")) return std::nullopt;
  name.remove_suffix(role.bias ? 5 : 7);
  for (const Names& names : kWhole) {
    if (name_in(style, names) != name) continue;
    role.part = names.part;
    return role;
  }
  const std::string_view prefix = style == NameStyle::kHf ? kHfLayer : kGgufLayer;
  if (!name.starts_with(prefix)) return std::nullopt;
  name.remove_prefix(prefix.size());
  const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), role.layer);
  name.remove_prefix(size_t(end - name.data()));
  if (error != std::errc() || role.layer < 0 || !name.starts_with('.')) return std::nullopt;
  name.remove_prefix(1);
  for (const Names& names : kOfLayer) {
    if (name_in(style, names) != name) continue;
    role.part = names.part;
    return role;
  }
  return std::nullopt;
}

int64_t permuted_heads(const TensorRole& role, const ModelConfig& config) {
  const bool family =
      config.architecture == Architecture::kLlama || config.architecture == Architecture::kMistral;
  if (!family) return 0;
  if (role.part == TensorRole::Part::kQ) return config.heads;
  return role.part == TensorRole::Part::kK ? config.kv_heads : 0;
}

}  // namespace longspur::io
