// The files of a Hugging Face folder from a GGUF file's keys: config.json, generation_config.json,
// tokenizer.json (byte-level BPE), tokenizer_config.json.
#include <charconv>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "io/files/model_files.h"
#include "io/files/printable.h"
#include "io/files/quantization_json.h"
#include "io/files/tokenizer_kinds.h"

namespace longspur::io {

using nlohmann::json;

namespace {

const std::string kPrefix = "tokenizer.ggml.";

// GGUF holds fp32: the shortest decimal that means the same one is what the model's makers wrote.
double shortest(double value) {
  char text[32];
  const auto written = std::to_chars(text, text + sizeof(text), float(value));
  double result = value;
  std::from_chars(text, written.ptr, result);
  return result;
}

const char* class_name(Architecture architecture) {
  switch (architecture) {
    case Architecture::kLlama:
      return "LlamaForCausalLM";
    case Architecture::kMistral:
      return "MistralForCausalLM";
    case Architecture::kQwen2:
      return "Qwen2ForCausalLM";
    case Architecture::kQwen3:
      return "Qwen3ForCausalLM";
  }
  throw InternalError("class_name: found a value outside the enum");
}

void add_rope(const GgufFile& source, const ModelConfig& c, json& config) {
  const RopeScaling& rope = c.rope_scaling;
  config["rope_theta"] = shortest(c.rope_theta);
  if (!c.rope_freq_factors.empty() || c.rotary_dim != c.head_dim)
    throw UnsupportedError(concat(source.path(),
                                  ": found rotary frequencies that config.json "
                                  "cannot state (rope_freqs.weight, rope.dimension_count)"));
  if (rope.kind == RopeScaling::Kind::kNone) return;
  const bool yarn = rope.kind == RopeScaling::Kind::kYarn;
  json scaling = {{"rope_type", yarn ? "yarn" : "linear"}, {"factor", shortest(rope.factor)}};
  if (yarn) {
    if (rope.original_max_position > 0)
      scaling["original_max_position_embeddings"] = rope.original_max_position;
    scaling["beta_fast"] = shortest(rope.beta_fast);
    scaling["beta_slow"] = shortest(rope.beta_slow);
    if (rope.attention_factor) scaling["attention_factor"] = *rope.attention_factor;
  }
  config["rope_scaling"] = scaling;
}

// Which biases there are; transformers knows one switch for the four of attention.
void add_biases(const GgufFile& source, const ModelConfig& c, json& config) {
  const auto has = [&](const char* part) {
    return source.find(concat("blk.0.", part, ".bias")) != nullptr;
  };
  const bool qkv = has("attn_q"), output = has("attn_output");
  const bool mlp = has("ffn_gate") || has("ffn_up") || has("ffn_down");
  const bool fixed = c.architecture == Architecture::kQwen2;  // q, k and v, always
  const bool stated = fixed ? qkv && !output : qkv == output;
  const bool no_switch = c.architecture == Architecture::kMistral && (qkv || output);
  if (!stated || no_switch || (mlp && c.architecture != Architecture::kLlama))
    throw UnsupportedError(concat(source.path(),
                                  ": found biases that config.json cannot state for ",
                                  architecture_name(c.architecture)));
  if (!fixed) config["attention_bias"] = qkv;
  config["mlp_bias"] = mlp;
}

json make_config(const GgufFile& source, const ModelConfig& c, const GenerationDefaults& defaults) {
  json config = {{"architectures", {class_name(c.architecture)}},
                 {"model_type", architecture_name(c.architecture)},
                 {"vocab_size", c.vocab},
                 {"hidden_size", c.hidden},
                 {"intermediate_size", c.intermediate},
                 {"num_hidden_layers", c.layers},
                 {"num_attention_heads", c.heads},
                 {"num_key_value_heads", c.kv_heads},
                 {"head_dim", c.head_dim},
                 {"max_position_embeddings", c.max_position},
                 {"rms_norm_eps", shortest(c.rms_eps)},
                 {"tie_word_embeddings", c.tied_embeddings},
                 {"hidden_act", "silu"},
                 {"use_cache", true},
                 {"torch_dtype", "bfloat16"}};
  add_rope(source, c, config);
  add_biases(source, c, config);
  const int64_t window = c.sliding_window.empty() ? 0 : c.sliding_window.front();
  if (c.architecture == Architecture::kMistral)
    config["sliding_window"] = window > 0 ? json(window) : json();
  else if (window > 0)
    throw UnsupportedError(concat(source.path(), ": found a sliding window of ", window,
                                  ", which config.json cannot state for ",
                                  architecture_name(c.architecture)));
  config["bos_token_id"] = defaults.bos_id ? json(*defaults.bos_id) : json();
  config["pad_token_id"] = defaults.pad_id ? json(*defaults.pad_id) : json();
  if (defaults.eos_ids.size() == 1)
    config["eos_token_id"] = defaults.eos_ids[0];
  else
    config["eos_token_id"] = defaults.eos_ids.empty() ? json() : json(defaults.eos_ids);
  return config;
}

json generation_config(const json& config) {
  json result = json::object();
  for (const char* key : {"bos_token_id", "eos_token_id", "pad_token_id"})
    if (!config[key].is_null()) result[key] = config[key];
  return result;
}

class TokenizerMaker {
 public:
  TokenizerMaker(const GgufFile& source, const std::vector<std::string>& tokens)
      : source_(source), tokens_(tokens), types_(source.get_ints(kPrefix + "token_type")) {
    for (const std::string& token : tokens)
      require(is_utf8(token), source.path(), ": ", kPrefix, "tokens: found ", shown(token),
              ", expected UTF-8");
    require(types_.empty() || types_.size() == tokens.size(), source.path(), ": ", kPrefix,
            "token_type: found ", types_.size(), " entries, expected ", tokens.size());
  }

  json tokenizer() const {
    const std::string pre = source_.get_string(kPrefix + "pre", "default");
    json steps = hf_tokenizer_steps(pre, source_.path());
    const auto* merges = source_.find_strings(kPrefix + "merges");
    require(merges != nullptr, source_.path(), ": ", kPrefix, "merges: missing");
    json vocab = json::object();
    for (size_t id = 0; id < tokens_.size(); ++id) vocab[tokens_[id]] = id;
    require(vocab.size() == tokens_.size(), source_.path(), ": ", kPrefix,
            "tokens: found a piece twice, expected once");
    json model = {{"type", "BPE"},
                  {"dropout", nullptr},
                  {"unk_token", nullptr},
                  {"continuing_subword_prefix", nullptr},
                  {"end_of_word_suffix", nullptr},
                  {"fuse_unk", false},
                  {"byte_fallback", false},
                  {"ignore_merges", steps["ignore_merges"]},
                  {"vocab", std::move(vocab)},
                  {"merges", *merges}};
    return {{"version", "1.0"},
            {"truncation", nullptr},
            {"padding", nullptr},
            {"added_tokens", added_tokens()},
            {"normalizer", steps["normalizer"]},
            {"pre_tokenizer", steps["pre_tokenizer"]},
            {"post_processor", post_processor(steps["ignore_merges"].get<bool>())},
            {"decoder", steps["decoder"]},
            {"model", std::move(model)}};
  }

  json tokenizer_config(int64_t context) const {
    json config = {{"tokenizer_class", "PreTrainedTokenizerFast"},
                   {"model_max_length", context},
                   {"clean_up_tokenization_spaces", false}};
    const std::pair<const char*, const char*> kTokens[] = {{"bos_token", "bos_token_id"},
                                                           {"eos_token", "eos_token_id"},
                                                           {"unk_token", "unknown_token_id"},
                                                           {"pad_token", "padding_token_id"}};
    // One that is an ordinary piece would be cut out of texts there.
    for (const auto& [name, key] : kTokens)
      if (const std::string* token = token_of(key); token && is_added(token - tokens_.data()))
        config[name] = *token;
    const std::string chat = source_.get_string("tokenizer.chat_template", "");
    if (!chat.empty() && is_utf8(chat)) config["chat_template"] = chat;
    return config;
  }

 private:
  // Token types of the format: 2 unknown, 3 control, 4 user-defined.
  bool is_added(int64_t id) const {
    return id < int64_t(types_.size()) && types_[size_t(id)] >= 2 && types_[size_t(id)] <= 4;
  }

  json added_tokens() const {
    json added = json::array();
    for (size_t id = 0; id < types_.size(); ++id) {
      if (!is_added(int64_t(id))) continue;
      added.push_back({{"id", id},
                       {"content", tokens_[id]},
                       {"single_word", false},
                       {"lstrip", false},
                       {"rstrip", false},
                       {"normalized", false},
                       {"special", types_[id] != 4}});
    }
    return added;
  }

  const std::string* token_of(const char* key) const {
    const int64_t id = source_.get_int(kPrefix + key, -1);
    return id >= 0 && id < int64_t(tokens_.size()) ? &tokens_[size_t(id)] : nullptr;
  }

  json post_processor(bool bos_by_default) const {
    const std::string* bos = token_of("bos_token_id");
    if (!bos || !source_.get_bool(kPrefix + "add_bos_token", bos_by_default)) return nullptr;
    const auto special = [&](int type) {
      return json{{"SpecialToken", {{"id", *bos}, {"type_id", type}}}};
    };
    const auto text = [](const char* name, int type) {
      return json{{"Sequence", {{"id", name}, {"type_id", type}}}};
    };
    const json token = {
        {"id", *bos}, {"ids", {source_.get_int(kPrefix + "bos_token_id")}}, {"tokens", {*bos}}};
    return {{"type", "TemplateProcessing"},
            {"single", json::array({special(0), text("A", 0)})},
            {"pair", json::array({special(0), text("A", 0), special(1), text("B", 1)})},
            {"special_tokens", {{*bos, token}}}};
  }

  const GgufFile& source_;
  const std::vector<std::string>& tokens_;
  std::vector<int64_t> types_;
};

}  // namespace

void write_folder_files(const GgufFile& source,
                        const ModelConfig& config,
                        const QuantizedModules& modules,
                        const WriteFile& write) {
  const json object = make_config(source, config, generation_defaults_from_gguf(source));
  write_config(object, modules, write);
  write("generation_config.json", generation_config(object).dump(2) + "\n");
  const auto* tokens = source.find_strings(kPrefix + "tokens");
  if (tokens == nullptr) return;
  const std::string kind = source.get_string(kPrefix + "model", "");
  if (kind != "gpt2")
    throw UnsupportedError(concat(source.path(), ": key 'tokenizer.ggml.model': found ",
                                  shown(kind),
                                  ", expected gpt2 (byte-level BPE) to write a folder; "
                                  "format gguf keeps any tokenizer"));
  const TokenizerMaker maker(source, *tokens);
  write("tokenizer.json", maker.tokenizer().dump() + "\n");
  write("tokenizer_config.json", maker.tokenizer_config(config.max_position).dump(2) + "\n");
}

}  // namespace longspur::io
