#include "app/cli/bench/start.h"

#include <algorithm>

#include "app/cli/answer.h"
#include "app/cli/child_process.h"
#include "base/error.h"
#include "engine/model_bundle.h"

namespace longspur::app::cli::bench {

namespace {

constexpr int64_t kPromptTokens = 16;

constexpr const char* kText =
    "Every autumn the birds gather on the northern shore and leave together for the south, and "
    "every spring they come back to the same cliffs, the same ledges and the same mates.";

std::vector<std::string> generate_command(const engine::EngineOptions& options,
                                          const std::string& prompt) {
  return {"/proc/self/exe", "generate",
          "--model",        options.model,
          "--device",       options.device,
          "--threads",      std::to_string(options.threads),
          "--compute",      options.compute == engine::Compute::kFp32 ? "fp32" : "default",
          "--activations",  options.activations,
          "--max-tokens",   "2",
          "--temperature",  "0",
          "--log-level",    "off",
          "--ignore-eos",   "--no-stats",
          "--prompt",       prompt};
}

double seconds_to_first_byte(const std::vector<std::string>& command) {
  const double begin = monotonic_seconds();
  ChildProcess child(command);
  child.close_stdin();
  const bool any = child.read_more();
  const double seconds = monotonic_seconds() - begin;
  while (child.read_more()) {
  }
  const int code = child.wait();
  require(code == 0 && any, "bench: `longspur generate` ended with ", code,
          any ? "" : " and no text", ", expected 0");
  return seconds;
}

}  // namespace

std::string short_prompt(const io::Tokenizer& tokenizer, int64_t tokens) {
  const std::vector<int32_t> ids = tokenizer.encode(kText);
  const size_t count = std::min(ids.size(), size_t(tokens));
  return tokenizer.decode(std::span(ids).first(count));
}

Start measure_start(const engine::EngineOptions& options, int64_t repeat) {
  const std::unique_ptr<io::Tokenizer> tokenizer = engine::open_model(options.model).tokenizer;
  if (!tokenizer) return {};
  const std::string prompt = short_prompt(*tokenizer, kPromptTokens);
  const std::vector<std::string> command = generate_command(options, prompt);
  Start start;
  start.prompt_tokens = int64_t(tokenizer->encode(prompt).size());
  seconds_to_first_byte(command);
  for (int64_t i = 0; i < repeat; ++i)
    start.first_token_s.push_back(seconds_to_first_byte(command));
  return start;
}

}  // namespace longspur::app::cli::bench
