// The keys of a GGUF file from a Hugging Face folder: hyper-parameters and a byte-level BPE
// tokenizer.
#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <numbers>

#include "base/error.h"
#include "io/files/json_file.h"
#include "io/files/model_files.h"
#include "io/files/printable.h"
#include "io/files/quantization_json.h"
#include "io/files/tokenizer_kinds.h"

namespace longspur::io {

namespace fs = std::filesystem;
using nlohmann::json;

namespace {

constexpr uint32_t kMostlyBf16 = 32;
constexpr int32_t kNormal = 1, kControl = 3, kUserDefined = 4, kUnused = 5;  // token types
constexpr size_t kMaxTokens = size_t(1) << 22;

// GGUF has one architecture for Llama and Mistral.
std::string ggml_architecture(const ModelConfig& config) {
  const bool llama = config.architecture == Architecture::kMistral;
  return std::string(architecture_name(llama ? Architecture::kLlama : config.architecture));
}

void add_rope(const ModelConfig& c, const std::string& prefix, GgufHeader& header) {
  const RopeScaling& rope = c.rope_scaling;
  header.integer(prefix + "rope.dimension_count", uint32_t(c.rotary_dim));
  header.number(prefix + "rope.freq_base", float(c.rope_theta));
  using Kind = RopeScaling::Kind;
  if (rope.kind == Kind::kNone || rope.kind == Kind::kLlama3) return;  // llama3: rope_freqs.weight
  if (rope.kind == Kind::kDynamic || !rope.truncate || rope.mscale || rope.mscale_all_dim)
    throw UnsupportedError(
        "config.json: found a rope scaling that GGUF cannot state, expected "
        "none, linear, llama3 or plain yarn");
  const bool yarn = rope.kind == Kind::kYarn;
  header.string(prefix + "rope.scaling.type", yarn ? "yarn" : "linear");
  header.number(prefix + "rope.scaling.factor", float(rope.factor));
  if (!yarn) return;
  const int64_t original = rope.original_max_position;
  header.integer(prefix + "rope.scaling.original_context_length",
                 uint32_t(original > 0 ? original : c.max_position));
  header.number(prefix + "rope.scaling.yarn_beta_fast", float(rope.beta_fast));
  header.number(prefix + "rope.scaling.yarn_beta_slow", float(rope.beta_slow));
  if (rope.attention_factor)  // a factor of YaRN's own
    header.number(prefix + "rope.scaling.attn_factor",
                  float(*rope.attention_factor / (0.1 * std::log(rope.factor) + 1.0)));
}

void add_hyper_parameters(const ModelConfig& c, GgufHeader& header) {
  const std::string prefix = ggml_architecture(c) + ".";
  const auto integer = [&](const char* key, int64_t value) {
    header.integer(prefix + key, uint32_t(value));
  };
  integer("block_count", c.layers);
  integer("context_length", c.max_position);
  integer("embedding_length", c.hidden);
  integer("feed_forward_length", c.intermediate);
  integer("attention.head_count", c.heads);
  integer("attention.head_count_kv", c.kv_heads);
  integer("attention.key_length", c.head_dim);
  integer("attention.value_length", c.head_dim);
  integer("vocab_size", c.vocab);
  header.number(prefix + "attention.layer_norm_rms_epsilon", float(c.rms_eps));
  add_rope(c, prefix, header);
  const int64_t window = c.sliding_window.empty() ? 0 : c.sliding_window.front();
  for (const int64_t other : c.sliding_window)
    if (other != window)
      throw UnsupportedError(
          "config.json: found a sliding window of some layers only, which GGUF "
          "cannot state");
  if (window > 0) integer("attention.sliding_window", window);
}

class Vocabulary {
 public:
  Vocabulary(const json& tokenizer, std::string where, int64_t size) : where_(std::move(where)) {
    const json& model = tokenizer.at("model");
    require(model.contains("vocab") && model["vocab"].is_object(), where_,
            ": model: vocab: expected an object");
    for (const auto& [piece, id] : model["vocab"].items()) set(piece, id, kNormal);
    if (tokenizer.contains("added_tokens") && tokenizer["added_tokens"].is_array()) {
      for (const json& token : tokenizer["added_tokens"]) {
        require(token.is_object() && token.contains("content") && token["content"].is_string() &&
                    token.contains("id"),
                where_, ": added_tokens: expected objects with id and content");
        const bool special = token.value("special", false);
        set(token["content"].get<std::string>(), token["id"], special ? kControl : kUserDefined);
      }
    }
    require(int64_t(pieces.size()) <= size, where_, ": found ", pieces.size(),
            " tokens, expected at most the model's vocabulary of ", size);
    for (int64_t id = 0; id < size; ++id) fill(size_t(id));
  }

  std::vector<std::string> pieces;
  std::vector<int32_t> types;

 private:
  void set(const std::string& piece, const json& id, int32_t type) {
    require(id.is_number_unsigned() && id.get<uint64_t>() < kMaxTokens, where_, ": token ",
            shown(piece), ": expected an id below ", kMaxTokens);
    const auto index = id.get<size_t>();
    if (index >= pieces.size()) {
      pieces.resize(index + 1);
      types.resize(index + 1, 0);
    }
    require(types[index] == 0 || pieces[index] == piece, where_, ": id ", index, ": found ",
            shown(pieces[index]), " and ", shown(piece), ", expected one token");
    pieces[index] = piece;
    types[index] = type;
  }

  // An id without a token gets a name of its own, as no name may stand there twice.
  void fill(size_t id) {
    if (id >= pieces.size()) {
      pieces.resize(id + 1);
      types.resize(id + 1, 0);
    }
    if (types[id] != 0) return;
    pieces[id] = concat("[PAD", id, "]");
    types[id] = kUnused;
  }

  std::string where_;
};

std::vector<std::string> merges_of(const json& model, const std::string& where) {
  require(model.contains("merges") && model["merges"].is_array(), where,
          ": model: merges: expected a list");
  std::vector<std::string> merges;
  for (const json& merge : model["merges"]) {
    const bool pair =
        merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string();
    require(pair || merge.is_string(), where, ": model: merges: expected pairs of pieces");
    merges.push_back(pair ? merge[0].get<std::string>() + " " + merge[1].get<std::string>()
                          : merge.get<std::string>());
  }
  return merges;
}

// Whether a token stands in front of every text.
bool adds_bos(const json& tokenizer) {
  const auto post = tokenizer.find("post_processor");
  if (post == tokenizer.end() || !post->is_object()) return false;
  const json empty = json::array();
  for (const json& step : post->value("processors", json::array({*post}))) {
    const json single = step.is_object() ? step.value("single", empty) : empty;
    if (single.is_array() && !single.empty() && single[0].is_object() &&
        single[0].contains("SpecialToken"))
      return true;
  }
  return false;
}

void add_tokenizer(const std::string& folder, const ModelConfig& config, GgufHeader& header) {
  const std::string path = (fs::path(folder) / "tokenizer.json").string();
  const std::string prefix = "tokenizer.ggml.";
  std::error_code error;
  if (!fs::exists(path, error)) return;
  const json tokenizer = read_json_file(path);
  const std::string pre = ggml_pre_name(tokenizer, path);
  const Vocabulary vocabulary(tokenizer, path, config.vocab);
  header.string(prefix + "model", "gpt2");
  header.string(prefix + "pre", pre);
  header.strings(prefix + "tokens", vocabulary.pieces);
  header.integers(prefix + "token_type", vocabulary.types);
  header.strings(prefix + "merges", merges_of(tokenizer["model"], path));
  const GenerationDefaults defaults = generation_defaults_from_hf(folder);
  if (defaults.bos_id) header.integer(prefix + "bos_token_id", uint32_t(*defaults.bos_id));
  if (!defaults.eos_ids.empty())
    header.integer(prefix + "eos_token_id", uint32_t(defaults.eos_ids[0]));
  if (defaults.eos_ids.size() > 1)
    header.integer(prefix + "eot_token_id", uint32_t(defaults.eos_ids[1]));
  if (defaults.pad_id) header.integer(prefix + "padding_token_id", uint32_t(*defaults.pad_id));
  header.boolean(prefix + "add_bos_token", defaults.bos_id && adds_bos(tokenizer));
  header.boolean(prefix + "add_space_prefix", false);
  const std::string chat = chat_template_from_hf(folder);
  if (!chat.empty()) header.string("tokenizer.chat_template", chat);
}

}  // namespace

void add_keys(const std::string& source,
              const ModelConfig& config,
              const QuantizedModules& modules,
              GgufHeader& header) {
  header.string("general.architecture", ggml_architecture(config));
  header.string("general.type", "model");
  if (!config.name.empty()) header.string("general.name", config.name);
  header.integer("general.file_type", modules.any ? kGgufNvfp4FileType : kMostlyBf16);
  header.integer("general.quantization_version", 2);
  add_hyper_parameters(config, header);
  add_tokenizer(source, config, header);
}

std::vector<float> rope_freq_factors(const ModelConfig& config) {
  const RopeScaling& rope = config.rope_scaling;
  if (rope.kind != RopeScaling::Kind::kLlama3) return config.rope_freq_factors;
  const double length =
      double(rope.original_max_position > 0 ? rope.original_max_position : config.max_position);
  std::vector<float> factors;
  for (int64_t i = 0; i < config.rotary_dim / 2; ++i) {
    const double frequency =
        std::pow(config.rope_theta, -2.0 * double(i) / double(config.rotary_dim));
    // turns over the trained length: many stay, few are stretched, between them it is blended
    const double turns = length * frequency / (2.0 * std::numbers::pi);
    const double keep =
        (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor);
    double factor = 1.0;
    if (turns < rope.low_freq_factor) {
      factor = rope.factor;
    } else if (turns <= rope.high_freq_factor) {
      factor = 1.0 / ((1.0 - keep) / rope.factor + keep);
    }
    factors.push_back(float(factor));
  }
  return factors;
}

}  // namespace longspur::io
