// Chat templates: our own bounded engine for the Jinja subset that published models use. Templates
// come from model files and are untrusted: no I/O, no reflection, step and output budgets. Output
// is a list of segments with their origin, so that control tokens inside user text stay text.
#pragma once

#include <cstdint>
#include <ctime>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "io/tokenizer/tokenizer.h"

namespace longspur::io {

struct ChatTemplateLimits {
  int64_t steps = 2'000'000;  // evaluated nodes
  int64_t output_bytes = 64 << 20;
  int64_t loop_iterations = 1'000'000;  // of all loops together
  int depth = 64;                       // nesting of blocks, expressions and macro calls
  int64_t template_bytes = 1 << 20;
};

struct ChatInput {
  nlohmann::ordered_json messages = nlohmann::ordered_json::array();  // [{"role","content",...}]
  nlohmann::ordered_json tools;                                       // null: not given
  nlohmann::ordered_json documents;                                   // null: not given
  nlohmann::ordered_json extra = nlohmann::ordered_json::object();    // e.g. enable_thinking
  bool add_generation_prompt = true;
  std::string bos_token, eos_token;
  std::time_t now = 0;  // for strftime_now; UTC
};

class ChatTemplate {
 public:
  // Throws Error with line and column when the source is outside the supported subset.
  static std::unique_ptr<ChatTemplate> parse(std::string source,
                                             const ChatTemplateLimits& limits = {});
  virtual ~ChatTemplate() = default;
  // special = true for text that comes from the template itself, bos_token and eos_token; false for
  // everything derived from messages, tools, documents or extra. Adjacent segments differ in
  // origin.
  virtual std::vector<TextSegment> render(const ChatInput& input) const = 0;
};

}  // namespace longspur::io
