#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "io/files/gguf_builder.h"
#include "io/files/json_file.h"
#include "io/files/model_config.h"
#include "io/files/test_files.h"

namespace longspur::io {
namespace {

using nlohmann::json;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::refusal;
using testing::TempFolder;

json llama() {
  return {{"model_type", "llama"},    {"vocab_size", 1000},
          {"hidden_size", 64},        {"intermediate_size", 96},
          {"num_hidden_layers", 4},   {"num_attention_heads", 4},
          {"num_key_value_heads", 2}, {"max_position_embeddings", 256}};
}

// `config` with some keys set.
json with(json config, const json& changes) {
  for (const auto& [key, value] : changes.items()) config[key] = value;
  return config;
}

ModelConfig read(const json& config) {
  const TempFolder folder;
  folder.write("config.json", config.dump());
  return model_config_from_hf(folder.path().string());
}

// One change to a good config.json, and what the message must say about it besides the file's name.
struct BadChange {
  const char* key;
  const char* value;  // JSON text
  const char* words;
};

void expect_refused(const json& good, const std::vector<BadChange>& changes) {
  const TempFolder folder;
  for (const BadChange& change : changes) {
    SCOPED_TRACE(concat(change.key, " = ", change.value));
    json config = good;
    config[change.key] = json::parse(change.value);
    const std::string path = folder.write("config.json", config.dump());
    const std::string message = refusal([&] { model_config_from_hf(folder.path().string()); });
    EXPECT_THAT(message, AllOf(HasSubstr(path), HasSubstr(change.words)));
  }
}

TEST(HfConfig, ReadsAGoodOne) {
  const ModelConfig config = read(llama());
  EXPECT_EQ(config.architecture, Architecture::kLlama);
  EXPECT_EQ(config.head_dim, 16);
  EXPECT_EQ(config.kv_heads, 2);
  EXPECT_EQ(config.rotary_dim, 16);
  EXPECT_EQ(config.rope_theta, 10000.0);
  EXPECT_THAT(config.sliding_window, ElementsAre(0, 0, 0, 0));
  EXPECT_FALSE(config.permuted_qk);
}

TEST(HfConfigRefuses, MissingKeys) {
  const TempFolder folder;
  for (const char* key : {"model_type", "vocab_size", "hidden_size", "intermediate_size",
                          "num_hidden_layers", "num_attention_heads"}) {
    for (const bool null : {false, true}) {
      json config = llama();
      config.erase(key);
      if (null) config[key] = nullptr;
      const std::string path = folder.write("config.json", config.dump());
      EXPECT_THAT(refusal([&] { model_config_from_hf(folder.path().string()); }),
                  HasSubstr(concat(path, ": ", key, ": missing")));
    }
  }
}

TEST(HfConfigRefuses, WrongTypes) {
  expect_refused(
      llama(),
      {{"vocab_size", "\"1000\"", "vocab_size: found the string '1000', expected an integer"},
       {"hidden_size", "64.0", "hidden_size: found the number 64.0, expected an integer"},
       {"hidden_size", "true", "hidden_size: found true, expected an integer"},
       {"intermediate_size", "[96]", "intermediate_size: found an array, expected an integer"},
       {"num_hidden_layers", "{}", "num_hidden_layers: found an object, expected an integer"},
       {"num_attention_heads", "1e2", "num_attention_heads: found the number 100.0"},
       {"num_key_value_heads", "\"\"", "num_key_value_heads: found the string ''"},
       {"head_dim", "false", "head_dim: found false"},
       {"model_type", "7", "model_type: found the number 7, expected a string"},
       {"max_position_embeddings", "[]", "max_position_embeddings: found an array"},
       {"rms_norm_eps", "\"1e-5\"", "rms_norm_eps: found the string '1e-5', expected a number"},
       {"rms_norm_eps", "[]", "rms_norm_eps: found an array"},
       {"tie_word_embeddings", "1", "tie_word_embeddings: found the number 1, expected a boolean"},
       {"tie_word_embeddings", "\"true\"", "tie_word_embeddings: found the string 'true'"},
       {"attention_bias", "0", "attention_bias: found the number 0, expected a boolean"},
       {"mlp_bias", "{}", "mlp_bias: found an object, expected a boolean"},
       {"hidden_act", "1", "hidden_act: found the number 1, expected a string"},
       {"rope_theta", "\"10000\"", "rope_theta: found the string '10000', expected a number"},
       {"rope_scaling", "[]", "rope_scaling: found an array, expected an object"},
       {"rope_scaling", "\"linear\"", "rope_scaling: found the string 'linear'"},
       {"rope_parameters", "1", "rope_parameters: found the number 1, expected an object"},
       {"quantization_config", "1", "quantization_config: found the number 1"}});
}

TEST(HfConfigRefuses, NumbersOutOfRange) {
  expect_refused(
      llama(),
      {{"vocab_size", "0", "vocab_size: found 0, expected 1 to"},
       {"vocab_size", "-1", "vocab_size: found -1"},
       {"vocab_size", "9223372036854775807", "vocab_size: found 9223372036854775807"},
       {"vocab_size", "18446744073709551615", "expected at most 2^63 - 1"},
       {"vocab_size", "99999999999999999999", "expected an integer"},
       {"hidden_size", "-64", "hidden_size: found -64"},
       {"hidden_size", "0", "hidden_size: found 0"},
       {"hidden_size", "4611686018427387904", "hidden_size: found 4611686018427387904"},
       {"hidden_size", "66", "hidden_size: found 66, expected a multiple of num_attention_heads 4"},
       {"intermediate_size", "0", "intermediate_size: found 0"},
       {"intermediate_size", "-9223372036854775808",
        "intermediate_size: found -9223372036854775808"},
       {"num_hidden_layers", "0", "num_hidden_layers: found 0"},
       {"num_hidden_layers", "1000000000000", "num_hidden_layers: found 1000000000000"},
       {"num_hidden_layers", "-4", "num_hidden_layers: found -4"},
       {"num_attention_heads", "0", "num_attention_heads: found 0"},
       {"num_attention_heads", "-4", "num_attention_heads: found -4"},
       {"num_attention_heads", "2048", "expected a multiple of num_attention_heads"},
       {"num_key_value_heads", "0", "num_key_value_heads: found 0"},
       {"num_key_value_heads", "3", "expected a multiple of num_key_value_heads 3"},
       {"num_key_value_heads", "8", "num_key_value_heads: found 8, expected 1 to 4"},
       {"num_key_value_heads", "-2", "num_key_value_heads: found -2"},
       {"head_dim", "0", "head_dim: found 0"},
       {"head_dim", "15", "head_dim: found 15, expected an even number"},
       {"head_dim", "1000000", "head_dim: found 1000000"},
       {"head_dim", "-16", "head_dim: found -16"},
       {"max_position_embeddings", "0", "max_position_embeddings: found 0"},
       {"max_position_embeddings", "-1", "max_position_embeddings: found -1"},
       {"max_position_embeddings", "1099511627776", "max_position_embeddings: found"},
       {"rms_norm_eps", "-1", "rms_norm_eps: found -1"},
       {"rms_norm_eps", "1e308", "rms_norm_eps: found 1e+308"},
       {"rope_theta", "0", "rope_theta: found 0"},
       {"rope_theta", "-10000", "rope_theta: found -10000"},
       {"rope_theta", "1e300", "rope_theta: found 1e+300"}});
}

TEST(HfConfigRefuses, BadRope) {
  expect_refused(
      llama(),
      {{"rope_scaling", R"({"type":"longrope","factor":2})", "rope_type: found 'longrope'"},
       {"rope_scaling", R"({"rope_type":"","factor":2})", "rope_type: found ''"},
       {"rope_scaling", R"({"type":1,"factor":2})", "type: found the number 1, expected a string"},
       {"rope_scaling", R"({"type":"linear"})", "rope_scaling: factor: missing"},
       {"rope_scaling", R"({"type":"linear","factor":null})", "factor: found null"},
       {"rope_scaling", R"({"type":"linear","factor":"2"})", "factor: found the string '2'"},
       {"rope_scaling", R"({"type":"linear","factor":0})", "rope factor: found 0"},
       {"rope_scaling", R"({"type":"linear","factor":-2})", "rope factor: found -2"},
       {"rope_scaling", R"({"type":"dynamic","factor":1e300})", "rope factor: found 1e+300"},
       {"rope_scaling", R"({"type":"yarn","factor":null})", "factor: found null"},
       {"rope_scaling", R"({"type":"yarn"})", "factor: missing"},
       {"rope_scaling", R"({"type":"yarn","factor":2,"original_max_position_embeddings":0})",
        "original_max_position_embeddings: found 0"},
       {"rope_scaling", R"({"type":"yarn","factor":2,"original_max_position_embeddings":-5})",
        "original_max_position_embeddings: found -5"},
       {"rope_scaling", R"({"type":"yarn","factor":2,"beta_fast":-1})", "beta_fast: found -1"},
       {"rope_scaling", R"({"type":"yarn","factor":2,"truncate":"no"})", "truncate: found"},
       {"rope_scaling", R"({"type":"yarn","factor":2,"attention_factor":-1})", "attention_factor"},
       {"rope_parameters", R"({"rope_type":"yarn","factor":2,"rope_theta":1})", "rope_theta"},
       {"rope_scaling", R"({"type":"llama3","factor":8})", "low_freq_factor: missing"},
       {"rope_scaling", R"({"type":"llama3","factor":8,"low_freq_factor":1})",
        "high_freq_factor: missing"},
       {"rope_scaling", R"({"type":"llama3","factor":8,"low_freq_factor":4,"high_freq_factor":1})",
        "expected above low_freq_factor"},
       {"rope_parameters", R"({"full_attention":{"rope_type":"default"}})", "by layer type"},
       {"rope_parameters", R"({"rope_theta":[]})", "rope_theta: found an array"},
       {"partial_rotary_factor", "0.5", "partial_rotary_factor: found 0.5, expected 1"},
       {"partial_rotary_factor", "\"1\"", "partial_rotary_factor: found the string"}});
  expect_refused(with(llama(), {{"head_dim", 2}}),
                 {{"rope_scaling", R"({"type":"dynamic","factor":2})", "with dynamic RoPE"}});
}

TEST(HfConfigRefuses, WhatIsNotComputed) {
  expect_refused(
      llama(), {{"model_type", "\"gpt2\"", "found 'gpt2', expected llama, mistral, qwen2 or qwen3"},
                {"model_type", "\"LLAMA\"", "found 'LLAMA'"},
                {"model_type", "\"\"", "found ''"},
                {"model_type", "\"a\\nb\"", "found 'a\\x0ab'"},
                {"hidden_act", "\"gelu\"", "hidden_act: found 'gelu', expected silu"},
                {"quantization_config", R"({"quant_method":"fp8"})", "quant_method 'fp8'"},
                {"quantization_config", "{}", "quantization_config: found quant_method ''"}});
}

TEST(HfConfigRefuses, BadWindows) {
  const json qwen = with(llama(), {{"model_type", "qwen2"}, {"use_sliding_window", true}});
  expect_refused(qwen,
                 {{"sliding_window", "-1", "sliding_window: found -1"},
                  {"sliding_window", "\"8\"", "sliding_window: found the string '8'"},
                  {"sliding_window", "1e30", "sliding_window: found"},
                  {"use_sliding_window", "1", "use_sliding_window: found the number 1"},
                  {"max_window_layers", "\"2\"", "max_window_layers: found the string '2'"},
                  {"layer_types", "{}", "layer_types: found an object"},
                  {"layer_types", "[]", "layer_types: found 0 entries, expected one a layer (4)"},
                  {"layer_types", "[1,2,3,4]", "layer_types: found the number 1"},
                  {"layer_types", R"(["full_attention","x","x","x"])", "layer_types: found 'x'"}});
}

TEST(HfConfigRefuses, BadFiles) {
  const TempFolder folder;
  const auto message = [&] {
    return refusal([&] { model_config_from_hf(folder.path().string()); });
  };
  EXPECT_THAT(message(), HasSubstr("config.json: cannot be opened"));
  const std::string good = llama().dump(), deep(100'000, '[');
  const std::vector<std::pair<std::string, std::string>> texts = {
      {"", "empty file"},
      {"{", "invalid JSON at byte"},
      {"[]", "found array, expected a JSON object"},
      {"null", "found null"},
      {"\"text\"", "found string"},
      {good.substr(0, good.size() - 1), "invalid JSON"},
      {good + "x", "invalid JSON"},
      {good + std::string(1, '\0') + "x", "invalid JSON at byte"},
      {good + good, "invalid JSON"},
      {"{\"vocab_size\":1,\"vocab_size\":2}", "key 'vocab_size' twice"},
      {"{\"a\":{\"b\":1,\"b\":2}}", "key 'b' twice"},
      {"{\"a\":" + deep, "nested deeper"},
      {"{\"a\":\"\xff\"}", "invalid JSON"},
      {"{\"rms_norm_eps\":1e999}", "beyond the range of double"},
      {"{\"rms_norm_eps\":NaN}", "invalid JSON"},
      {"{\"rms_norm_eps\":Infinity}", "invalid JSON"},
      {"// no\n{}", "invalid JSON"}};
  for (const auto& [text, words] : texts) {
    SCOPED_TRACE(text.substr(0, 40));
    folder.write("config.json", text);
    EXPECT_THAT(message(), AllOf(HasSubstr(words), HasSubstr("config.json")));
  }
  std::string names;
  for (int i = 0; i < 100'000; ++i) names += (i ? ",\"" : "\"") + std::to_string(i) + "\":0";
  folder.write("config.json", "{" + names + "}");
  EXPECT_THROW(model_config_from_hf(folder.path().string()), Error);  // model_type is missing
}

TEST(GenerationDefaults, RefusesBadFiles) {
  const TempFolder folder;
  folder.write("config.json", llama().dump());
  const std::vector<std::pair<const char*, const char*>> texts = {
      {R"({"eos_token_id":"2"})", "eos_token_id: found the string '2'"},
      {R"({"eos_token_id":1.5})", "eos_token_id: found the number 1.5"},
      {R"({"eos_token_id":-2})", "eos_token_id: found -2"},
      {R"({"eos_token_id":4294967296})", "eos_token_id: found 4294967296"},
      {R"({"eos_token_id":[1,"2"]})", "eos_token_id: found the string '2'"},
      {R"({"eos_token_id":[[1]]})", "eos_token_id: found an array"},
      {R"({"eos_token_id":{}})", "eos_token_id: found an object"},
      {R"({"bos_token_id":[1]})", "bos_token_id: found an array"},
      {R"({"bos_token_id":-9})", "bos_token_id: found -9"},
      {R"({"pad_token_id":true})", "pad_token_id: found true"},
      {R"({"temperature":"hot"})", "temperature: found the string 'hot'"},
      {R"({"temperature":-1})", "temperature: found -1"},
      {R"({"temperature":1e308})", "temperature: found 1e+308"},
      {R"({"top_p":2})", "top_p: found 2, expected 0 to 1"},
      {R"({"top_p":[]})", "top_p: found an array"},
      {R"({"top_k":-1})", "top_k: found -1"},
      {R"({"top_k":1.5})", "top_k: found the number 1.5"},
      {R"({"repetition_penalty":0})", "repetition_penalty: found 0"},
      {R"({"repetition_penalty":"1"})", "repetition_penalty: found the string '1'"},
      {R"({"do_sample":1})", "do_sample: found the number 1"},
      {R"({"do_sample":"yes"})", "do_sample: found the string 'yes'"},
      {"[]", "expected a JSON object"},
      {"{", "invalid JSON"}};
  for (const auto& [text, words] : texts) {
    SCOPED_TRACE(text);
    const std::string path = folder.write("generation_config.json", text);
    EXPECT_THAT(refusal([&] { generation_defaults_from_hf(folder.path().string()); }),
                AllOf(HasSubstr(path), HasSubstr(words)));
  }
}

TEST(GenerationDefaults, ComeFromBothFiles) {
  const TempFolder folder;
  folder.write("config.json",
               with(llama(), {{"eos_token_id", {5, 6}}, {"bos_token_id", 3}}).dump());
  const std::string path = folder.path().string();
  EXPECT_THAT(generation_defaults_from_hf(path).eos_ids, ElementsAre(5, 6));
  folder.write("generation_config.json",
               R"({"eos_token_id":7,"pad_token_id":-1,"temperature":0.5,"do_sample":false})");
  const GenerationDefaults defaults = generation_defaults_from_hf(path);
  EXPECT_THAT(defaults.eos_ids, ElementsAre(7));
  EXPECT_EQ(defaults.bos_id, 3);
  EXPECT_EQ(defaults.pad_id, std::nullopt);
  EXPECT_EQ(defaults.temperature, 0.5);
  EXPECT_EQ(defaults.do_sample, false);
  EXPECT_EQ(defaults.top_k, std::nullopt);
}

TEST(GenerationDefaults, LeaveOutIdsBeyondTheVocabulary) {
  const TempFolder folder;
  folder.write("config.json", with(llama(), {{"eos_token_id", {999, 1000, 2147483647}}}).dump());
  EXPECT_THAT(generation_defaults_from_hf(folder.path().string()).eos_ids, ElementsAre(999));
}

// Every key removed or replaced by every kind of value: a typed error, or a valid configuration.
TEST(HfConfig, EveryKeyWithEveryValue) {
  json rich = with(llama(), {{"head_dim", 16},
                             {"rms_norm_eps", 1e-5},
                             {"rope_theta", 1e4},
                             {"tie_word_embeddings", false},
                             {"hidden_act", "silu"},
                             {"use_sliding_window", true},
                             {"sliding_window", 8},
                             {"max_window_layers", 2},
                             {"eos_token_id", 2},
                             {"rope_scaling",
                              {{"rope_type", "yarn"},
                               {"factor", 2.0},
                               {"original_max_position_embeddings", 64},
                               {"beta_fast", 32},
                               {"attention_factor", 1.0}}}});
  const std::vector<const char*> values = {"null",
                                           "true",
                                           "0",
                                           "-1",
                                           "1",
                                           "3",
                                           "2147483648",
                                           "-9223372036854775808",
                                           "18446744073709551615",
                                           "1e308",
                                           "-0.5",
                                           "\"\"",
                                           "\"x\"",
                                           "[]",
                                           "[0]",
                                           "[[]]",
                                           "{}",
                                           "{\"a\":1}"};
  const TempFolder folder;
  const auto probe = [&](const json& config) {
    folder.write("config.json", config.dump());
    try {
      const ModelConfig read = model_config_from_hf(folder.path().string());
      EXPECT_EQ(int64_t(read.sliding_window.size()), read.layers);
      EXPECT_EQ(read.heads % read.kv_heads, 0);
      generation_defaults_from_hf(folder.path().string());
    } catch (const Error& error) {
      EXPECT_THAT(error.what(), HasSubstr("config.json"));
    }
  };
  for (const char* family : {"llama", "mistral", "qwen2", "qwen3"}) {
    rich["model_type"] = family;
    probe(rich);
    for (const auto& item : rich.items()) {
      for (const char* value : values) probe(with(rich, {{item.key(), json::parse(value)}}));
    }
    for (const auto& item : rich["rope_scaling"].items()) {
      for (const char* value : values) {
        json rope = with(rich["rope_scaling"], {{item.key(), json::parse(value)}});
        probe(with(rich, {{"rope_scaling", rope}}));
      }
    }
  }
}

TEST(HfTemplate, ComesFromEitherFile) {
  const TempFolder folder;
  const std::string path = folder.path().string();
  EXPECT_EQ(chat_template_from_hf(path), "");
  folder.write("tokenizer_config.json", "{}");
  EXPECT_EQ(chat_template_from_hf(path), "");
  folder.write("tokenizer_config.json", R"({"chat_template":"one"})");
  EXPECT_EQ(chat_template_from_hf(path), "one");
  folder.write("tokenizer_config.json", R"({"chat_template":[{"name":"tool_use","template":"t"},
                                           {"name":"default","template":"two"}]})");
  EXPECT_EQ(chat_template_from_hf(path), "two");
  folder.write("tokenizer_config.json", R"({"chat_template":[{"template":"x"}]})");
  EXPECT_EQ(chat_template_from_hf(path), "");
  folder.write("chat_template.jinja", "three");
  EXPECT_EQ(chat_template_from_hf(path), "three");
}

TEST(HfTemplate, RefusesBadFiles) {
  const TempFolder folder;
  const std::vector<std::pair<std::string, const char*>> texts = {
      {R"({"chat_template":1})", "chat_template: found the number 1, expected a string"},
      {R"({"chat_template":{}})", "chat_template: found an object"},
      {R"({"chat_template":["x"]})", "chat_template: found string in the list"},
      {R"({"chat_template":[{"name":1,"template":"x"}]})", "name: found the number 1"},
      {R"({"chat_template":[{"name":"default","template":[]}]})", "template: found an array"},
      {R"({"chat_template":")" + std::string(1100000, 'x') + "\"}", "expected at most 1048576"},
      {"[]", "expected a JSON object"},
      {"{", "invalid JSON"},
      {"", "empty file"}};
  for (const auto& [text, words] : texts) {
    SCOPED_TRACE(words);
    const std::string path = folder.write("tokenizer_config.json", text);
    EXPECT_THAT(refusal([&] { chat_template_from_hf(folder.path().string()); }),
                AllOf(HasSubstr(path), HasSubstr(words)));
  }
  for (const std::string& text : {std::string("\xff"), std::string(1100000, 'x')}) {
    const std::string path = folder.write("chat_template.jinja", text);
    EXPECT_THAT(refusal([&] { chat_template_from_hf(folder.path().string()); }), HasSubstr(path));
  }
}

// --- the same from GGUF metadata ----------------------------------------------------------------

ModelConfig read_gguf(const std::string& bytes) {
  const TempFolder folder;
  return model_config_from_gguf(*GgufFile::open(folder.write("m.gguf", bytes)));
}

TEST(GgufConfig, ReadsAGoodOne) {
  const ModelConfig config = read_gguf(testing::tiny_llama_gguf());
  EXPECT_EQ(config.vocab, 5);
  EXPECT_EQ(config.head_dim, 4);
  EXPECT_EQ(config.kv_heads, 1);
  EXPECT_TRUE(config.tied_embeddings);
  EXPECT_TRUE(config.permuted_qk);
}

TEST(GgufConfigRefuses, BadValues) {
  using testing::GgufBuilder;
  struct Case {
    GgufBuilder builder;
    const char* words;
  };
  const auto base = [](const char* architecture, uint32_t layers, uint32_t heads,
                       uint32_t kv_heads) {
    GgufBuilder builder;
    builder.string("general.architecture", architecture)
        .number("llama.context_length", 128u)
        .number("llama.embedding_length", 8u)
        .number("llama.block_count", layers)
        .number("llama.feed_forward_length", 16u)
        .number("llama.attention.head_count", heads)
        .number("llama.attention.head_count_kv", kv_heads)
        .number("llama.attention.layer_norm_rms_epsilon", 1e-5f)
        .number("llama.vocab_size", 5u);
    return builder;
  };
  const auto good = [&] { return base("llama", 2, 2, 1); };
  const auto array = [](uint32_t a, uint32_t b) {
    return testing::Bytes().put(uint32_t(4)).put(uint64_t(2)).put(a).put(b).str();
  };
  const std::vector<Case> cases = {
      {GgufBuilder(), "key 'general.architecture': missing"},
      {GgufBuilder().number("general.architecture", 1u), "expected a string"},
      {base("gpt2", 2, 2, 1), "found 'gpt2', expected llama"},
      {base("", 2, 2, 1), "found ''"},
      {base("qwen3", 2, 2, 1), "key 'qwen3."},
      {base("llama", 0, 2, 1), "block_count': found 0"},
      {base("llama", 4'000'000'000, 2, 1), "block_count': found 4000000000"},
      {base("llama", 2, 0, 1), "head_count': found 0"},
      {base("llama", 2, 2, 0), "num_key_value_heads: found 0"},
      {base("llama", 2, 3, 2), "expected a multiple of num_key_value_heads"},
      {good().number("llama.attention.key_length", 0u), "head_dim: found 0"},
      {good().number("llama.attention.key_length", 5u),
       "head_dim: found 5, expected an even number"},
      {good().number("llama.attention.value_length", 6u), "expected the key length 4"},
      {good().number("llama.rope.dimension_count", 3u), "rotary dimension: found 3"},
      {good().number("llama.rope.dimension_count", 64u), "rotary dimension: found 64"},
      {good().number("llama.rope.freq_base", 0.0f), "rope_theta: found 0"},
      {good().number("llama.rope.freq_base", std::numeric_limits<float>::quiet_NaN()),
       "rope_theta"},
      {good().string("llama.rope.freq_base", "1e4"), "found a string, expected a number"},
      {good().string("llama.rope.scaling.type", "longrope"), "found 'longrope', expected none"},
      {good().string("llama.rope.scaling.type", "linear"), "rope.scaling.factor': missing"},
      {good().string("llama.rope.scaling.type", "yarn").number("llama.rope.scaling.factor", -1.0f),
       "rope factor: found -1"},
      {good().number("llama.rope.scale_linear", -2.0f), "rope factor: found -2"},
      {good().key("llama.attention.sliding_window", 5, testing::Bytes().put(-3).str()),
       "sliding_window: found -3"},
      {good().values("rope_freqs.weight", {7}, std::vector<float>(7, 1.0f)), "expected 2 of F32"},
      {good().values("rope_freqs.weight", {2}, {1.0f, 0.0f}), "rope_freqs.weight: found 0"},
      {good().string("llama.vocab_size2", "").key("llama.logit_scale", 9, array(1, 2)), nullptr},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(c.words ? c.words : "good");
    const std::string bytes = c.builder.str();
    if (c.words == nullptr) {
      EXPECT_EQ(read_gguf(bytes).layers, 2);
      continue;
    }
    EXPECT_THAT(refusal([&] { read_gguf(bytes); }),
                AllOf(HasSubstr(c.words), HasSubstr("m.gguf: ")));
  }
}

TEST(GgufConfig, PerLayerArrays) {
  using testing::GgufBuilder;
  const auto with_heads = [](uint32_t a, uint32_t b, uint64_t count) {
    GgufBuilder builder;
    builder.string("general.architecture", "llama")
        .number("llama.context_length", 128u)
        .number("llama.embedding_length", 8u)
        .number("llama.block_count", 2u)
        .number("llama.feed_forward_length", 16u)
        .key("llama.attention.head_count", 9,
             testing::Bytes().put(uint32_t(4)).put(count).put(a).put(b).str())
        .number("llama.attention.layer_norm_rms_epsilon", 1e-5f)
        .number("llama.vocab_size", 5u);
    return builder.str();
  };
  EXPECT_EQ(read_gguf(with_heads(2, 2, 2)).heads, 2);
  EXPECT_THAT(refusal([&] { read_gguf(with_heads(2, 4, 2)); }), HasSubstr("different layers"));
  EXPECT_THAT(refusal([&] { read_gguf(with_heads(2, 2, 1)); }), HasSubstr("m.gguf"));
}

TEST(GgufGeneration, TokenIds) {
  const TempFolder folder;
  const auto read_ids = [&](testing::GgufBuilder builder) {
    builder.values("token_embd.weight", {2, 9}, std::vector<float>(18));
    return generation_defaults_from_gguf(*GgufFile::open(folder.write("m.gguf", builder.str())));
  };
  const GenerationDefaults defaults =
      read_ids(testing::GgufBuilder()
                   .number("tokenizer.ggml.eos_token_id", 2u)
                   .number("tokenizer.ggml.eot_token_id", 8u)
                   .number("tokenizer.ggml.eom_token_id", 2u)
                   .number("tokenizer.ggml.bos_token_id", 9u)
                   .number("tokenizer.ggml.padding_token_id", 0xffffffffu));
  EXPECT_THAT(defaults.eos_ids, ElementsAre(2, 8));
  EXPECT_EQ(defaults.bos_id, std::nullopt);  // beyond the vocabulary of 9
  EXPECT_EQ(defaults.pad_id, std::nullopt);
  EXPECT_THAT(
      refusal([&] { read_ids(testing::GgufBuilder().string("tokenizer.ggml.eos_token_id", "2")); }),
      HasSubstr("expected an integer"));
}

}  // namespace
}  // namespace longspur::io
