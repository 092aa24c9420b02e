// config.json and generation_config.json of Hugging Face folders, with the defaults and the
// readings of transformers' configuration classes.
#include <algorithm>
#include <cmath>
#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "io/files/config_checks.h"
#include "io/files/json_file.h"
#include "io/files/model_config.h"

namespace longspur::io {

namespace fs = std::filesystem;
using nlohmann::json;

namespace {

// Typed look-ups in one object. null counts as absent, as it does for transformers.
class Fields {
 public:
  Fields(const json& object, std::string where) : object_(&object), where_(std::move(where)) {}

  const json* find(const char* key) const {
    const auto found = object_->find(key);
    return found == object_->end() || found->is_null() ? nullptr : &*found;
  }

  std::optional<int64_t> integer(const char* key) const {
    const json* value = find(key);
    return value ? std::optional(to_integer(key, *value)) : std::nullopt;
  }
  int64_t integer(const char* key, int64_t fallback) const {
    return integer(key).value_or(fallback);
  }
  int64_t required_integer(const char* key) const {
    const auto value = integer(key);
    require(value.has_value(), where_, ": ", key, ": missing");
    return *value;
  }

  std::optional<double> number(const char* key) const {
    const json* value = find(key);
    if (value == nullptr) return std::nullopt;
    if (!value->is_number()) wrong(key, *value, "a number");
    return value->get<double>();
  }
  double number(const char* key, double fallback) const { return number(key).value_or(fallback); }

  std::optional<bool> boolean(const char* key) const {
    const json* value = find(key);
    if (value == nullptr) return std::nullopt;
    if (!value->is_boolean()) wrong(key, *value, "a boolean");
    return value->get<bool>();
  }
  bool boolean(const char* key, bool fallback) const { return boolean(key).value_or(fallback); }

  std::optional<std::string> text(const char* key) const {
    const json* value = find(key);
    if (value == nullptr) return std::nullopt;
    if (!value->is_string()) wrong(key, *value, "a string");
    return value->get<std::string>();
  }

  std::optional<Fields> object(const char* key) const {
    const json* value = find(key);
    if (value == nullptr) return std::nullopt;
    if (!value->is_object()) wrong(key, *value, "an object");
    return Fields(*value, where_ + ": " + key);
  }

  // One integer or a list of them.
  std::vector<int64_t> integers(const char* key) const {
    const json* value = find(key);
    if (value == nullptr) return {};
    if (!value->is_array()) return {to_integer(key, *value)};
    std::vector<int64_t> list;
    for (const json& entry : *value) list.push_back(to_integer(key, entry));
    return list;
  }

  [[noreturn]] void wrong(const char* key, const json& value, const char* expected) const {
    throw Error(concat(where_, ": ", key, ": found ", value.type_name(), ", expected ", expected));
  }
  const std::string& where() const { return where_; }

 private:
  int64_t to_integer(const char* key, const json& value) const {
    if (value.is_number_unsigned()) {
      const auto number = value.get<uint64_t>();
      require(number <= uint64_t(std::numeric_limits<int64_t>::max()), where_, ": ", key,
              ": found ", number, ", expected at most 2^63 - 1");
      return int64_t(number);
    }
    if (value.is_number_integer()) return value.get<int64_t>();
    wrong(key, value, "an integer");
  }

  const json* object_;
  std::string where_;
};

RopeScaling::Kind parse_rope_kind(const std::string& name, const std::string& where) {
  using Kind = RopeScaling::Kind;
  if (name == "default" || name == "none") return Kind::kNone;
  if (name == "linear") return Kind::kLinear;
  if (name == "dynamic") return Kind::kDynamic;
  if (name == "llama3") return Kind::kLlama3;
  if (name == "yarn") return Kind::kYarn;
  throw UnsupportedError(concat(where, ": rope type: found '", name,
                                "', expected default, linear, dynamic, llama3 or yarn"));
}

// rope_parameters (transformers 5) or rope_theta with rope_scaling (before).
void read_rope(const Fields& fields, ModelConfig& config) {
  config.rope_theta = fields.number("rope_theta", 10000.0);
  std::optional<Fields> scaling = fields.object("rope_parameters");
  if (!scaling) scaling = fields.object("rope_scaling");
  double partial = fields.number("partial_rotary_factor", 1.0);
  if (scaling) {
    config.rope_theta = scaling->number("rope_theta", config.rope_theta);
    partial = scaling->number("partial_rotary_factor", partial);
    std::optional<std::string> kind = scaling->text("rope_type");
    if (!kind) kind = scaling->text("type");
    RopeScaling& rope = config.rope_scaling;
    rope.kind = parse_rope_kind(kind.value_or("default"), scaling->where());
    const bool needs_factor = rope.kind != RopeScaling::Kind::kNone;
    require(!needs_factor || scaling->find("factor") != nullptr, scaling->where(),
            ": factor: missing");
    rope.factor = scaling->number("factor", 1.0);
    rope.original_max_position = scaling->integer("original_max_position_embeddings", 0);
    rope.low_freq_factor = scaling->number("low_freq_factor", rope.low_freq_factor);
    rope.high_freq_factor = scaling->number("high_freq_factor", rope.high_freq_factor);
    rope.beta_fast = scaling->number("beta_fast", rope.beta_fast);
    rope.beta_slow = scaling->number("beta_slow", rope.beta_slow);
    rope.attention_factor = scaling->number("attention_factor");
    rope.mscale = scaling->number("mscale");
    rope.mscale_all_dim = scaling->number("mscale_all_dim");
    rope.truncate = scaling->boolean("truncate", true);
  }
  require(std::isfinite(partial) && partial > 0.0 && partial <= 1.0, fields.where(),
          ": partial_rotary_factor: found ", partial, ", expected above 0 and at most 1");
  config.rotary_dim = int64_t(double(config.head_dim) * partial);
}

// A layer's window: from layer_types where the file has them, else transformers' rule for the
// family.
void read_windows(const Fields& fields, ModelConfig& config) {
  config.sliding_window.assign(size_t(config.layers), 0);
  const int64_t window = fields.integer("sliding_window", 0);
  const bool qwen =
      config.architecture == Architecture::kQwen2 || config.architecture == Architecture::kQwen3;
  const bool used = window > 0 && (config.architecture == Architecture::kMistral ||
                                   (qwen && fields.boolean("use_sliding_window", false)));
  if (!used) return;
  const json* types = fields.find("layer_types");
  if (types != nullptr && qwen) {
    if (!types->is_array() || int64_t(types->size()) != config.layers) {
      throw Error(
          concat(fields.where(), ": layer_types: expected a list of ", config.layers, " strings"));
    }
    for (size_t i = 0; i < types->size(); ++i) {
      const json& type = (*types)[i];
      if (type == "sliding_attention")
        config.sliding_window[i] = window;
      else
        require(type == "full_attention", fields.where(), ": layer_types: found ", type.dump(),
                ", expected full_attention or sliding_attention");
    }
    return;
  }
  const int64_t first = qwen ? fields.integer("max_window_layers", 28) : 0;
  for (int64_t i = std::max<int64_t>(first, 0); i < config.layers; ++i)
    config.sliding_window[size_t(i)] = window;
}

int32_t to_token_id(int64_t id, const std::string& where, const char* key) {
  require(id >= 0 && id < (int64_t(1) << 31), where, ": ", key, ": found ", id,
          ", expected 0 to 2^31 - 1");
  return int32_t(id);
}

// Token ids of one file; returns whether it named an end of text.
void read_token_ids(const Fields& fields, GenerationDefaults& defaults) {
  if (fields.find("eos_token_id") != nullptr) {
    defaults.eos_ids.clear();
    for (const int64_t id : fields.integers("eos_token_id")) {
      defaults.eos_ids.push_back(to_token_id(id, fields.where(), "eos_token_id"));
    }
  }
  if (const auto id = fields.integer("bos_token_id"))
    defaults.bos_id = to_token_id(*id, fields.where(), "bos_token_id");
  if (const auto id = fields.integer("pad_token_id"); id && *id >= 0) {
    defaults.pad_id = to_token_id(*id, fields.where(), "pad_token_id");
  }
}

}  // namespace

ModelConfig model_config_from_hf(const std::string& folder) {
  const std::string path = (fs::path(folder) / "config.json").string();
  const json object = read_json_file(path);
  const Fields fields(object, path);
  ModelConfig config;
  const auto type = fields.text("model_type");
  require(type.has_value(), path, ": model_type: missing");
  config.architecture = parse_architecture(*type, path);
  config.name = fields.text("_name_or_path").value_or("");
  config.vocab = fields.required_integer("vocab_size");
  config.hidden = fields.required_integer("hidden_size");
  config.intermediate = fields.required_integer("intermediate_size");
  config.layers = fields.required_integer("num_hidden_layers");
  config.heads = fields.required_integer("num_attention_heads");
  config.kv_heads = fields.integer("num_key_value_heads", config.heads);
  require(config.layers >= 1 && config.layers <= 1024, path, ": num_hidden_layers: found ",
          config.layers, ", expected 1 to 1024");
  require(config.heads >= 1, path, ": num_attention_heads: found ", config.heads,
          ", expected at least 1");
  const int64_t usual_dim =
      config.architecture == Architecture::kQwen3 ? 128 : config.hidden / config.heads;
  config.head_dim = fields.integer("head_dim", usual_dim);
  config.max_position = fields.integer("max_position_embeddings", 2048);
  config.rms_eps = fields.number("rms_norm_eps", 1e-6);
  config.tied_embeddings = fields.boolean("tie_word_embeddings", false);
  const auto activation = fields.text("hidden_act");
  if (activation && *activation != "silu") {
    throw UnsupportedError(concat(path, ": hidden_act: found '", *activation, "', expected silu"));
  }
  const bool attention_bias = fields.boolean("attention_bias", false);
  config.qkv_bias = config.architecture == Architecture::kQwen2 || attention_bias;
  config.output_bias = config.architecture != Architecture::kQwen2 && attention_bias;
  config.mlp_bias = fields.boolean("mlp_bias", false);
  config.qk_norm = config.architecture == Architecture::kQwen3;
  read_rope(fields, config);
  read_windows(fields, config);
  validate_config(config, path);
  return config;
}

GenerationDefaults generation_defaults_from_hf(const std::string& folder) {
  GenerationDefaults defaults;
  const fs::path base(folder), generation = base / "generation_config.json";
  const std::string config_path = (base / "config.json").string();
  const json config = read_json_file(config_path);
  read_token_ids(Fields(config, config_path), defaults);
  std::error_code error;
  if (!fs::exists(generation, error)) return defaults;
  const json object = read_json_file(generation.string());
  const Fields fields(object, generation.string());
  read_token_ids(fields, defaults);
  defaults.temperature = fields.number("temperature");
  defaults.top_p = fields.number("top_p");
  defaults.top_k = fields.integer("top_k");
  defaults.repetition_penalty = fields.number("repetition_penalty");
  defaults.do_sample = fields.boolean("do_sample");
  return defaults;
}

}  // namespace longspur::io
