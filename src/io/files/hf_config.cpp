// config.json and generation_config.json of Hugging Face folders, with the defaults and the
// readings of transformers' configuration classes.
#include <algorithm>
#include <cmath>
#include <filesystem>
#include <limits>

#include "base/error.h"
#include "io/files/config_checks.h"
#include "io/files/json_fields.h"
#include "io/files/json_file.h"
#include "io/files/model_config.h"
#include "io/files/printable.h"

namespace longspur::io {

namespace fs = std::filesystem;
using nlohmann::json;

namespace {

constexpr int64_t kMaxPosition = int64_t(1) << 40;

// What transformers' configuration class of a family assumes where the file says nothing.
struct FamilyDefaults {
  int64_t kv_heads;  // 0: as many as query heads
  int64_t max_position, sliding_window;
  bool has_window_switch;  // use_sliding_window, max_window_layers and layer_types count
  bool has_token_ids;      // 1 begins and 2 ends a text
};

FamilyDefaults family_defaults(Architecture architecture) {
  switch (architecture) {
    case Architecture::kLlama:
      return {0, 2048, 0, false, true};
    case Architecture::kMistral:
      return {8, 4096 * 32, 4096, false, true};
    case Architecture::kQwen2:
    case Architecture::kQwen3:
      return {32, 32768, 4096, true, false};
  }
  throw InternalError("family_defaults: found a value outside the enum");
}

RopeScaling::Kind parse_rope_kind(const JsonFields& fields) {
  using Kind = RopeScaling::Kind;
  std::optional<std::string> name = fields.text("rope_type");
  if (!name) name = fields.text("type");
  if (!name || *name == "default" || *name == "none") return Kind::kNone;
  if (*name == "linear") return Kind::kLinear;
  if (*name == "dynamic") return Kind::kDynamic;
  if (*name == "llama3") return Kind::kLlama3;
  if (*name == "yarn") return Kind::kYarn;
  throw UnsupportedError(concat(fields.where(), ": rope_type: found ", shown(*name),
                                ", expected default, linear, dynamic, llama3 or yarn"));
}

// The object that describes RoPE: rope_scaling (transformers 4) counts before rope_parameters
// (transformers 5), and an empty one not at all.
std::optional<JsonFields> rope_fields(const JsonFields& fields) {
  for (const char* key : {"rope_scaling", "rope_parameters"}) {
    const std::optional<JsonFields> found = fields.object(key);
    if (!found || fields.find(key)->empty()) continue;
    for (const char* type : {"full_attention", "sliding_attention"}) {
      if (found->find(type) != nullptr) {
        throw UnsupportedError(concat(found->where(), ": found RoPE parameters by layer type (",
                                      type, "), expected the same for all layers"));
      }
    }
    return found;
  }
  return std::nullopt;
}

// Trained length that llama3 and YaRN start from; 0: max_position_embeddings. A value beside the
// RoPE object counts before one inside, as for transformers.
int64_t original_max_position(const JsonFields& fields, const JsonFields& rope) {
  constexpr const char* kKey = "original_max_position_embeddings";
  const auto inside = rope.integer_within(kKey, 1, kMaxPosition);
  const auto beside = fields.integer_within(kKey, 1, kMaxPosition);
  return beside.value_or(inside.value_or(0));
}

RopeScaling read_scaling(const JsonFields& fields, const JsonFields& rope, int64_t max_position) {
  using Kind = RopeScaling::Kind;
  RopeScaling scaling;
  scaling.kind = parse_rope_kind(rope);
  if (scaling.kind == Kind::kNone) return scaling;
  require(rope.contains("factor"), rope.where(), ": factor: missing");
  if (scaling.kind == Kind::kLlama3 || scaling.kind == Kind::kYarn)
    scaling.original_max_position = original_max_position(fields, rope);
  const auto factor = rope.number("factor");
  // YaRN's null factor: the ratio of the two lengths
  const bool ratio = !factor && scaling.kind == Kind::kYarn && scaling.original_max_position > 0;
  require(factor.has_value() || ratio, rope.where(), ": factor: found null, expected a number");
  scaling.factor =
      ratio ? std::max(1.0, double(max_position) / double(scaling.original_max_position)) : *factor;
  if (scaling.kind == Kind::kLlama3) {
    for (const char* key : {"low_freq_factor", "high_freq_factor"})
      require(rope.find(key) != nullptr, rope.where(), ": ", key, ": missing");
    scaling.low_freq_factor = *rope.number("low_freq_factor");
    scaling.high_freq_factor = *rope.number("high_freq_factor");
  }
  if (scaling.kind == Kind::kYarn) {
    const auto or_default = [&](const char* key, double fallback) {
      const double value = rope.number(key, fallback);
      return value == 0.0 ? fallback : value;
    };
    scaling.beta_fast = or_default("beta_fast", scaling.beta_fast);
    scaling.beta_slow = or_default("beta_slow", scaling.beta_slow);
    scaling.attention_factor = rope.number("attention_factor");
    scaling.mscale = rope.number("mscale");
    scaling.mscale_all_dim = rope.number("mscale_all_dim");
    scaling.truncate = rope.boolean("truncate", true);
  }
  return scaling;
}

void read_rope(const JsonFields& fields, ModelConfig& config) {
  config.rope_theta = fields.number("rope_theta", 10000.0);
  config.rotary_dim = config.head_dim;
  double partial = fields.number("partial_rotary_factor", 1.0);
  if (const std::optional<JsonFields> rope = rope_fields(fields)) {
    config.rope_theta = rope->number("rope_theta", config.rope_theta);
    partial = rope->number("partial_rotary_factor", partial);
    config.rope_scaling = read_scaling(fields, *rope, config.max_position);
  }
  if (partial != 1.0) {  // transformers rotates whole heads in these families, whatever it says
    throw UnsupportedError(concat(fields.where(), ": partial_rotary_factor: found ", partial,
                                  ", expected 1 for ", architecture_name(config.architecture)));
  }
}

// layer_types of the Qwen families: which layers look through the window.
void read_layer_types(const JsonFields& fields,
                      const json& types,
                      int64_t window,
                      ModelConfig& config) {
  if (!types.is_array()) fields.wrong("layer_types", types, "a list of strings");
  require(int64_t(types.size()) == config.layers, fields.where(), ": layer_types: found ",
          types.size(), " entries, expected one a layer (", config.layers, ")");
  for (size_t i = 0; i < types.size(); ++i) {
    if (!types[i].is_string()) fields.wrong("layer_types", types[i], "a string");
    const auto& type = types[i].get_ref<const std::string&>();
    require(type == "full_attention" || type == "sliding_attention", fields.where(),
            ": layer_types: found ", shown(type), ", expected full_attention or sliding_attention");
    if (type == "sliding_attention") config.sliding_window[i] = window;
  }
}

void read_windows(const JsonFields& fields, const FamilyDefaults& family, ModelConfig& config) {
  config.sliding_window.assign(size_t(config.layers), 0);
  int64_t window = fields.contains("sliding_window")
                       ? fields.integer_within("sliding_window", 0, int64_t(1) << 30).value_or(0)
                       : family.sliding_window;
  if (config.architecture == Architecture::kLlama) return;
  if (!family.has_window_switch) {
    config.sliding_window.assign(size_t(config.layers), window);
    return;
  }
  if (!fields.boolean("use_sliding_window", false)) window = 0;
  if (const json* types = fields.find("layer_types"))
    return read_layer_types(fields, *types, window, config);
  const int64_t first = fields.integer("max_window_layers", 28);
  for (int64_t i = std::max<int64_t>(first, 0); i < config.layers; ++i)
    config.sliding_window[size_t(i)] = window;
}

void read_shape(const JsonFields& fields, const FamilyDefaults& family, ModelConfig& config) {
  const std::string& path = fields.where();
  config.vocab = fields.required_integer("vocab_size");
  config.hidden = fields.required_integer("hidden_size");
  config.intermediate = fields.required_integer("intermediate_size");
  config.layers = fields.required_integer("num_hidden_layers");
  config.heads = fields.required_integer("num_attention_heads");
  require(config.layers >= 1 && config.layers <= kMaxLayers, path, ": num_hidden_layers: found ",
          config.layers, ", expected 1 to ", kMaxLayers);
  require(config.heads >= 1, path, ": num_attention_heads: found ", config.heads,
          ", expected at least 1");
  const bool said = fields.contains("num_key_value_heads") || family.kv_heads == 0;
  config.kv_heads = said ? fields.integer("num_key_value_heads", config.heads) : family.kv_heads;
  const bool fixed_dim = config.architecture == Architecture::kQwen3;
  require(fixed_dim || fields.find("head_dim") || config.hidden % config.heads == 0, path,
          ": hidden_size: found ", config.hidden, ", expected a multiple of num_attention_heads ",
          config.heads);
  config.head_dim = fields.integer("head_dim", fixed_dim ? 128 : config.hidden / config.heads);
  config.max_position = fields.integer("max_position_embeddings", family.max_position);
}

void read_biases(const JsonFields& fields, ModelConfig& config) {
  const bool attention_bias = fields.boolean("attention_bias", false);
  switch (config.architecture) {
    case Architecture::kLlama:
      config.qkv_bias = config.output_bias = attention_bias;
      config.mlp_bias = fields.boolean("mlp_bias", false);
      break;
    case Architecture::kMistral:
      break;
    case Architecture::kQwen2:
      config.qkv_bias = true;
      break;
    case Architecture::kQwen3:
      config.qkv_bias = config.output_bias = attention_bias;
      break;
  }
}

void refuse_what_is_not_computed(const JsonFields& fields) {
  const auto activation = fields.text("hidden_act");
  if (activation && *activation != "silu" && *activation != "swish") {
    throw UnsupportedError(
        concat(fields.where(), ": hidden_act: found ", shown(*activation), ", expected silu"));
  }
}

// Token ids that a file states. Ids beyond the vocabulary are left out: they can never occur.
class TokenIds {
 public:
  TokenIds(const JsonFields& fields, int64_t vocab) : fields_(fields), vocab_(vocab) {}

  void read(GenerationDefaults& defaults) const {
    if (fields_.find("eos_token_id") != nullptr) {
      defaults.eos_ids.clear();
      for (const int64_t id : fields_.integers("eos_token_id"))
        if (check("eos_token_id", id)) defaults.eos_ids.push_back(int32_t(id));
    }
    one("bos_token_id", defaults.bos_id);
    one("pad_token_id", defaults.pad_id);
  }

 private:
  void one(const char* key, std::optional<int32_t>& id) const {
    const auto found = fields_.integer(key);
    if (found && check(key, *found)) id = int32_t(*found);
  }
  // -1 is how some files say "none".
  bool check(const char* key, int64_t id) const {
    require(id >= -1 && id < (int64_t(1) << 31), fields_.where(), ": ", key, ": found ", id,
            ", expected 0 to 2^31 - 1");
    return id >= 0 && id < vocab_;
  }

  const JsonFields& fields_;
  int64_t vocab_;
};

}  // namespace

ModelConfig model_config_from_hf(const std::string& folder) {
  const std::string path = (fs::path(folder) / "config.json").string();
  const json object = read_json_file(path);
  const JsonFields fields(object, path);
  ModelConfig config;
  const auto type = fields.text("model_type");
  require(type.has_value(), path, ": model_type: missing");
  config.architecture = parse_architecture(*type, path + ": model_type");
  const FamilyDefaults family = family_defaults(config.architecture);
  config.name = fields.text("_name_or_path").value_or("");
  refuse_what_is_not_computed(fields);
  config.quantization = read_quantization(folder, fields);
  read_shape(fields, family, config);
  config.rms_eps = fields.number("rms_norm_eps", 1e-6);
  config.tied_embeddings = fields.boolean("tie_word_embeddings", false);
  config.qk_norm = config.architecture == Architecture::kQwen3;
  read_biases(fields, config);
  read_rope(fields, config);
  read_windows(fields, family, config);
  validate_config(config, path);
  return config;
}

GenerationDefaults generation_defaults_from_hf(const std::string& folder) {
  GenerationDefaults defaults;
  const fs::path base(folder), generation = base / "generation_config.json";
  const std::string config_path = (base / "config.json").string();
  const json config = read_json_file(config_path);
  const JsonFields config_fields(config, config_path);
  const int64_t vocab = config_fields.integer("vocab_size", std::numeric_limits<int32_t>::max());
  const auto type = config_fields.text("model_type");
  if (type && family_defaults(parse_architecture(*type, config_path)).has_token_ids) {
    if (!config_fields.contains("bos_token_id") && vocab > 1) defaults.bos_id = 1;
    if (!config_fields.contains("eos_token_id") && vocab > 2) defaults.eos_ids = {2};
  }
  TokenIds(config_fields, vocab).read(defaults);
  std::error_code error;
  if (!fs::exists(generation, error)) return defaults;
  const json object = read_json_file(generation.string());
  const JsonFields fields(object, generation.string());
  TokenIds(fields, vocab).read(defaults);
  defaults.temperature = fields.number_within("temperature", 0.0, 1e6);
  defaults.top_p = fields.number_within("top_p", 0.0, 1.0);
  defaults.top_k = fields.integer_within("top_k", 0, int64_t(1) << 31);
  defaults.repetition_penalty = fields.number_within("repetition_penalty", 1e-6, 1e6);
  defaults.do_sample = fields.boolean("do_sample");
  return defaults;
}

}  // namespace longspur::io
