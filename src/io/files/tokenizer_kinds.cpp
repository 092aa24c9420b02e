#include "io/files/tokenizer_kinds.h"

#include <nlohmann/json.hpp>

#include "base/error.h"
#include "io/files/printable.h"

namespace longspur::io {

using nlohmann::json;

namespace {

// The two published expressions differ in how many digits stand together.
std::string modern_pattern(const char* digits) {
  return concat(R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|)", digits,
                R"(| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)");
}
const std::string kLlama3 = modern_pattern(R"(\p{N}{1,3})");
const std::string kQwen2 = modern_pattern(R"(\p{N})");

json byte_level(bool use_regex) {
  return {{"type", "ByteLevel"},
          {"add_prefix_space", false},
          {"trim_offsets", true},
          {"use_regex", use_regex}};
}

json sequence(const json& first, const json& second) {
  return {{"type", "Sequence"}, {"pretokenizers", json::array({first, second})}};
}

json split(const std::string& pattern) {
  return sequence({{"type", "Split"},
                   {"pattern", {{"Regex", pattern}}},
                   {"behavior", "Isolated"},
                   {"invert", false}},
                  byte_level(false));
}

std::string text(const json& object, const char* key) {
  const auto found = object.is_object() ? object.find(key) : object.end();
  return object.is_object() && found != object.end() && found->is_string()
             ? found->get<std::string>()
             : "";
}

bool flag(const json& object, const char* key, bool fallback) {
  const auto found = object.find(key);
  return found != object.end() && found->is_boolean() ? found->get<bool>() : fallback;
}

bool is_byte_level(const json& step, bool use_regex) {
  return text(step, "type") == "ByteLevel" && !flag(step, "add_prefix_space", true) &&
         flag(step, "use_regex", true) == use_regex;
}

// "" when it is none of those that have a name.
std::string name_of(const json& step) {
  if (is_byte_level(step, true)) return "gpt-2";
  if (text(step, "type") != "Sequence" || !step.contains("pretokenizers")) return "";
  const json& steps = step["pretokenizers"];
  if (!steps.is_array() || steps.size() != 2) return "";
  if (text(steps[0], "type") == "Digits" && flag(steps[0], "individual_digits", false) &&
      is_byte_level(steps[1], true))
    return "smollm";
  if (text(steps[0], "type") != "Split" || text(steps[0], "behavior") != "Isolated" ||
      flag(steps[0], "invert", false) || !steps[0].contains("pattern") ||
      !is_byte_level(steps[1], false))
    return "";
  const std::string pattern = text(steps[0]["pattern"], "Regex");
  return pattern == kLlama3 ? "llama-bpe" : pattern == kQwen2 ? "qwen2" : "";
}

}  // namespace

std::string ggml_pre_name(const json& tokenizer, const std::string& where) {
  const auto model = tokenizer.find("model"), step = tokenizer.find("pre_tokenizer");
  if (model == tokenizer.end() || text(*model, "type") != "BPE" || step == tokenizer.end())
    throw UnsupportedError(concat(where,
                                  ": found a tokenizer that is no byte-level BPE, which "
                                  "cannot be written to GGUF"));
  const std::string name = name_of(*step);
  if (name.empty())
    throw UnsupportedError(concat(where,
                                  ": pre_tokenizer: found one that GGUF has no name for, "
                                  "expected that of GPT-2, SmolLM, Llama-3 or Qwen2"));
  const auto normalizer = tokenizer.find("normalizer");
  const bool plain = normalizer == tokenizer.end() || normalizer->is_null() ||
                     (name == "qwen2" && text(*normalizer, "type") == "NFC");
  if (!plain)
    throw UnsupportedError(concat(where, ": normalizer: found one that GGUF cannot state"));
  return name;
}

json hf_tokenizer_steps(std::string_view pre, const std::string& where) {
  json steps = {{"normalizer", nullptr}, {"decoder", byte_level(true)}, {"ignore_merges", false}};
  if (pre == "default" || pre == "gpt-2") {
    steps["pre_tokenizer"] = byte_level(true);
  } else if (pre == "smollm") {
    steps["pre_tokenizer"] =
        sequence({{"type", "Digits"}, {"individual_digits", true}}, byte_level(true));
  } else if (pre == "llama-bpe" || pre == "llama-3" || pre == "llama3" || pre == "llama-v3") {
    steps["pre_tokenizer"] = split(kLlama3);
    steps["ignore_merges"] = true;
  } else if (pre == "qwen2" || pre == "deepseek-r1-qwen") {
    steps["pre_tokenizer"] = split(kQwen2);
    steps["normalizer"] = {{"type", "NFC"}};
  } else {
    throw UnsupportedError(concat(where, ": key 'tokenizer.ggml.pre': found ", shown(pre),
                                  ", expected default, gpt-2, smollm, llama-bpe, llama-3, llama3, "
                                  "llama-v3, qwen2 or deepseek-r1-qwen"));
  }
  return steps;
}

}  // namespace longspur::io
