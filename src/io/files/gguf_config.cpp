// Hyper-parameters from GGUF metadata ("<architecture>.block_count" and its kin).
#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

#include "base/error.h"
#include "io/files/config_checks.h"
#include "io/files/model_config.h"
#include "io/files/printable.h"

namespace longspur::io {

namespace {

// Looks keys up below "<architecture>." and names them in full when something is wrong.
struct Keys {
  const GgufFile& file;
  std::string prefix;

  std::string where(const char* key) const {
    return concat(file.path(), ": key '", prefix, key, "': ");
  }
  int64_t integer(const char* key) const { return file.get_int(prefix + key); }
  int64_t integer(const char* key, int64_t fallback) const {
    return file.get_int(prefix + key, fallback);
  }
  double number(const char* key) const { return file.get_float(prefix + key); }
  double number(const char* key, double fallback) const {
    return file.get_float(prefix + key, fallback);
  }

  // A number, or an array with one number a layer: all the same, other models are not supported.
  std::optional<int64_t> uniform(const char* key, int64_t layers) const {
    const auto found = file.metadata().find(prefix + key);
    if (found == file.metadata().end()) return std::nullopt;
    const bool array = std::holds_alternative<std::vector<int64_t>>(found->second) ||
                       std::holds_alternative<std::vector<uint64_t>>(found->second);
    if (!array) return integer(key);
    const std::vector<int64_t> values = file.get_ints(prefix + key);
    require(int64_t(values.size()) == layers, where(key), "found ", values.size(),
            " entries, expected one a layer (", layers, ")");
    if (std::adjacent_find(values.begin(), values.end(), std::not_equal_to<>()) != values.end()) {
      throw UnsupportedError(concat(where(key), "found different numbers for different layers, ",
                                    "expected the same for all"));
    }
    return values.front();
  }
};

RopeScaling read_scaling(const Keys& keys) {
  RopeScaling rope;
  const std::string kind = keys.file.get_string(keys.prefix + "rope.scaling.type", "");
  // before rope.scaling.type existed
  const double old_factor = keys.number("rope.scale_linear", 1.0);
  if (kind == "none" || (kind.empty() && old_factor == 1.0)) return rope;
  if (kind == "linear" || kind.empty()) {
    rope.kind = RopeScaling::Kind::kLinear;
  } else if (kind == "yarn") {
    rope.kind = RopeScaling::Kind::kYarn;
  } else {
    throw UnsupportedError(concat(keys.where("rope.scaling.type"), "found ", shown(kind),
                                  ", expected none, linear or yarn"));
  }
  rope.factor = kind.empty() ? old_factor : keys.number("rope.scaling.factor");
  rope.original_max_position = keys.integer("rope.scaling.original_context_length", 0);
  rope.beta_fast = keys.number("rope.scaling.yarn_beta_fast", rope.beta_fast);
  rope.beta_slow = keys.number("rope.scaling.yarn_beta_slow", rope.beta_slow);
  // here it multiplies YaRN's own factor, which an attention_factor replaces
  const double attention = keys.number("rope.scaling.attn_factor", 1.0);
  if (rope.kind == RopeScaling::Kind::kYarn && attention != 1.0 && rope.factor >= 1.0)
    rope.attention_factor = attention * (0.1 * std::log(rope.factor) + 1.0);
  return rope;
}

std::vector<float> read_freq_factors(const GgufFile& file, int64_t rotary_dim) {
  const TensorInfo* tensor = file.find("rope_freqs.weight");
  if (tensor == nullptr) return {};
  require(tensor->dtype == DType::kF32 && tensor->shape == std::vector{rotary_dim / 2}, file.path(),
          ": tensor 'rope_freqs.weight': found ", tensor->elements(), " values of type ",
          dtype_info(tensor->dtype).name, ", expected ", rotary_dim / 2, " of F32");
  std::vector<float> factors(size_t(tensor->elements()));
  dequantize(tensor->dtype, tensor->data.data(), tensor->elements(), factors.data());
  return factors;
}

int64_t vocabulary(const Keys& keys) {
  // The embedding decides: metadata may lag behind an extended vocabulary.
  const TensorInfo* embedding = keys.file.find("token_embd.weight");
  if (embedding && embedding->shape.size() == 2) return embedding->shape[0];
  return keys.integer("vocab_size");
}

void read_attention(const Keys& keys, ModelConfig& config) {
  const auto heads = keys.uniform("attention.head_count", config.layers);
  require(heads.has_value(), keys.where("attention.head_count"), "missing");
  require(*heads >= 1, keys.where("attention.head_count"), "found ", *heads,
          ", expected at least 1");
  config.heads = *heads;
  config.kv_heads = keys.uniform("attention.head_count_kv", config.layers).value_or(config.heads);
  config.head_dim = keys.integer("attention.key_length", config.hidden / config.heads);
  const int64_t value_dim = keys.integer("attention.value_length", config.head_dim);
  require(value_dim == config.head_dim, keys.where("attention.value_length"), "found ", value_dim,
          ", expected the key length ", config.head_dim);
  const int64_t window = keys.integer("attention.sliding_window", 0);
  config.sliding_window.assign(size_t(config.layers), window);
}

}  // namespace

ModelConfig model_config_from_gguf(const GgufFile& file) {
  const std::string architecture = file.get_string("general.architecture");
  ModelConfig config;
  config.architecture =
      parse_architecture(architecture, file.path() + ": key 'general.architecture'");
  const Keys keys{file, architecture + "."};
  config.name = file.get_string("general.name", "");
  config.vocab = vocabulary(keys);
  config.hidden = keys.integer("embedding_length");
  config.layers = keys.integer("block_count");
  require(config.layers >= 1 && config.layers <= kMaxLayers, keys.where("block_count"), "found ",
          config.layers, ", expected 1 to ", kMaxLayers);
  const auto intermediate = keys.uniform("feed_forward_length", config.layers);
  require(intermediate.has_value(), keys.where("feed_forward_length"), "missing");
  config.intermediate = *intermediate;
  read_attention(keys, config);
  config.rotary_dim = keys.integer("rope.dimension_count", config.head_dim);
  config.max_position = keys.integer("context_length");
  config.rms_eps = keys.number("attention.layer_norm_rms_epsilon");
  config.rope_theta = keys.number("rope.freq_base", 10000.0);
  config.rope_scaling = read_scaling(keys);
  config.rope_freq_factors = read_freq_factors(file, config.rotary_dim);
  config.tied_embeddings = file.find("output.weight") == nullptr;
  config.qkv_bias = config.architecture == Architecture::kQwen2;
  config.qk_norm = config.architecture == Architecture::kQwen3;
  // The converter interleaves the rotary halves for the families whose readers rotate adjacent
  // pairs.
  config.permuted_qk =
      config.architecture == Architecture::kLlama || config.architecture == Architecture::kMistral;
  validate_config(config, file.path());
  return config;
}

GenerationDefaults generation_defaults_from_gguf(const GgufFile& file) {
  GenerationDefaults defaults;
  const TensorInfo* embedding = file.find("token_embd.weight");
  const int64_t vocab = embedding && embedding->shape.size() == 2
                            ? embedding->shape[0]
                            : int64_t(std::numeric_limits<int32_t>::max());
  const auto id = [&](const char* key) -> std::optional<int32_t> {
    const int64_t value = file.get_int(key, -1);
    require(value >= -1 && value < (int64_t(1) << 32), file.path(), ": key '", key, "': found ",
            value, ", expected a token id");
    // -1 as such or as 32 bits says "none"; what is beyond the vocabulary can never occur
    return value < 0 || value >= vocab ? std::nullopt : std::optional(int32_t(value));
  };
  // End of text, of turn and of message all end a generation.
  for (const char* key : {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id",
                          "tokenizer.ggml.eom_token_id"}) {
    const auto value = id(key);
    if (value && std::find(defaults.eos_ids.begin(), defaults.eos_ids.end(), *value) ==
                     defaults.eos_ids.end()) {
      defaults.eos_ids.push_back(*value);
    }
  }
  defaults.bos_id = id("tokenizer.ggml.bos_token_id");
  defaults.pad_id = id("tokenizer.ggml.padding_token_id");
  return defaults;
}

}  // namespace longspur::io
