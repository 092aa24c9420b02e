// Hyper-parameters from GGUF metadata ("<architecture>.block_count" and its kin).
#include <algorithm>

#include "base/error.h"
#include "io/files/config_checks.h"
#include "io/files/model_config.h"

namespace longspur::io {

namespace {

RopeScaling read_scaling(const GgufFile& file, const std::string& prefix) {
  RopeScaling rope;
  const std::string kind = file.get_string(prefix + "rope.scaling.type", "none");
  if (kind == "none") return rope;
  if (kind == "linear")
    rope.kind = RopeScaling::Kind::kLinear;
  else if (kind == "yarn")
    rope.kind = RopeScaling::Kind::kYarn;
  else {
    throw UnsupportedError(concat("key '", prefix, "rope.scaling.type': found '", kind,
                                  "', expected none, linear or yarn"));
  }
  rope.factor = file.get_float(prefix + "rope.scaling.factor");
  rope.original_max_position = file.get_int(prefix + "rope.scaling.original_context_length", 0);
  rope.beta_fast = file.get_float(prefix + "rope.scaling.yarn_beta_fast", rope.beta_fast);
  rope.beta_slow = file.get_float(prefix + "rope.scaling.yarn_beta_slow", rope.beta_slow);
  return rope;
}

std::vector<float> read_freq_factors(const GgufFile& file) {
  const TensorInfo* tensor = file.find("rope_freqs.weight");
  if (tensor == nullptr) return {};
  require(tensor->shape.size() == 1 && tensor->dtype == DType::kF32,
          "tensor 'rope_freqs.weight': found ", dtype_info(tensor->dtype).name, " of ",
          tensor->shape.size(), " dimensions, expected F32 of 1");
  std::vector<float> factors(size_t(tensor->elements()));
  dequantize(tensor->dtype, tensor->data.data(), tensor->elements(), factors.data());
  return factors;
}

int64_t vocabulary(const GgufFile& file, const std::string& prefix) {
  // The embedding decides: metadata may lag behind an extended vocabulary.
  if (const TensorInfo* embedding = file.find("token_embd.weight");
      embedding && embedding->shape.size() == 2) {
    return embedding->shape[0];
  }
  return file.get_int(prefix + "vocab_size");
}

}  // namespace

ModelConfig model_config_from_gguf(const GgufFile& file) {
  const std::string architecture = file.get_string("general.architecture");
  ModelConfig config;
  config.architecture = parse_architecture(architecture, "key 'general.architecture'");
  const std::string prefix = architecture + ".";
  config.name = file.get_string("general.name", "");
  config.vocab = vocabulary(file, prefix);
  config.hidden = file.get_int(prefix + "embedding_length");
  config.intermediate = file.get_int(prefix + "feed_forward_length");
  config.layers = file.get_int(prefix + "block_count");
  config.heads = file.get_int(prefix + "attention.head_count");
  config.kv_heads = file.get_int(prefix + "attention.head_count_kv", config.heads);
  require(config.layers >= 1 && config.layers <= 1024, "key '", prefix, "block_count': found ",
          config.layers, ", expected 1 to 1024");
  require(config.heads >= 1, "key '", prefix, "attention.head_count': found ", config.heads,
          ", expected at least 1");
  config.head_dim = file.get_int(prefix + "attention.key_length", config.hidden / config.heads);
  const int64_t value_dim = file.get_int(prefix + "attention.value_length", config.head_dim);
  require(value_dim == config.head_dim, "key '", prefix, "attention.value_length': found ",
          value_dim, ", expected the key length ", config.head_dim);
  config.rotary_dim = file.get_int(prefix + "rope.dimension_count", config.head_dim);
  config.max_position = file.get_int(prefix + "context_length");
  config.rms_eps = file.get_float(prefix + "attention.layer_norm_rms_epsilon");
  config.rope_theta = file.get_float(prefix + "rope.freq_base", 10000.0);
  config.rope_scaling = read_scaling(file, prefix);
  config.rope_freq_factors = read_freq_factors(file);
  config.tied_embeddings = file.find("output.weight") == nullptr;
  config.qkv_bias = config.architecture == Architecture::kQwen2;
  config.qk_norm = config.architecture == Architecture::kQwen3;
  const int64_t window = file.get_int(prefix + "attention.sliding_window", 0);
  config.sliding_window.assign(size_t(config.layers), window);
  // The converter interleaves the rotary halves for the families whose readers rotate adjacent
  // pairs.
  config.permuted_qk =
      config.architecture == Architecture::kLlama || config.architecture == Architecture::kMistral;
  validate_config(config, "GGUF metadata");
  return config;
}

GenerationDefaults generation_defaults_from_gguf(const GgufFile& file) {
  GenerationDefaults defaults;
  const auto id = [&](const char* key) -> std::optional<int32_t> {
    const int64_t value = file.get_int(key, -1);
    require(value >= -1 && value < (int64_t(1) << 31), "key '", key, "': found ", value,
            ", expected a token id");
    return value < 0 ? std::nullopt : std::optional(int32_t(value));
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
