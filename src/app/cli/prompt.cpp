#include "app/cli/prompt.h"

#include <ctime>
#include <nlohmann/json.hpp>

#include "app/cli/console.h"
#include "base/error.h"
#include "io/chat/chat_template.h"
#include "io/tokenizer/tokenizer.h"

namespace longspur::app::cli {

namespace {

// A document and what follows it, an empty line between.
std::string joined(std::string document, const std::string& question) {
  if (!document.ends_with("\n\n")) document += document.ends_with("\n") ? "\n" : "\n\n";
  return document + question;
}

std::string given_text(const Settings& settings) {
  const bool file = settings.has("prompt-file"), text = settings.has("prompt");
  if (file && text) return joined(read_file(settings.text("prompt-file")), settings.text("prompt"));
  if (file) return read_file(settings.text("prompt-file"));
  if (text) return settings.text("prompt");
  if (stdin_is_terminal())
    throw UsageError("found no prompt, expected --prompt, --prompt-file or text on stdin");
  return read_stdin();
}

std::string piece_or_empty(const io::Tokenizer& tokenizer, std::optional<int32_t> id) {
  return id ? std::string(tokenizer.piece(*id)) : std::string();
}

}  // namespace

std::string read_prompt(const Settings& settings) {
  std::string text = given_text(settings);
  require(!text.empty(), "prompt: found an empty text, expected at least one byte");
  return text;
}

std::vector<int32_t> raw_prompt(const engine::Engine& engine, const std::string& text) {
  const io::Tokenizer& tokenizer = engine.tokenizer();
  const std::string bos = piece_or_empty(tokenizer, tokenizer.bos_id());
  const bool add = tokenizer.add_bos_by_default() && !bos.empty() && !text.starts_with(bos);
  return tokenizer.encode(text, {.special = true, .bos = add});
}

std::vector<int32_t> chat_prompt(const engine::Engine& engine,
                                 const nlohmann::ordered_json& messages) {
  const io::ChatTemplate* chat = engine.chat_template();
  require(chat != nullptr, "model: found no chat template, expected one for a conversation");
  const io::Tokenizer& tokenizer = engine.tokenizer();
  io::ChatInput input;
  input.messages = messages;
  input.bos_token = piece_or_empty(tokenizer, tokenizer.bos_id());
  input.eos_token = piece_or_empty(tokenizer, tokenizer.eos_id());
  input.now = std::time(nullptr);
  return tokenizer.encode_segments(chat->render(input));
}

nlohmann::ordered_json single_turn(const std::string& system, const std::string& user) {
  auto messages = nlohmann::ordered_json::array();
  if (!system.empty()) messages.push_back({{"role", "system"}, {"content", system}});
  messages.push_back({{"role", "user"}, {"content", user}});
  return messages;
}

}  // namespace longspur::app::cli
