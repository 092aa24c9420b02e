// A template from the bytes, with a conversation that has text, parts, calls and numbers. A
// template that parses must render or throw Error, within its budgets, and its segments must
// alternate.
#include <cstdint>
#include <cstdlib>
#include <string>

#include "base/error.h"
#include "io/chat/chat_template.h"

namespace {

longspur::io::ChatInput conversation() {
  longspur::io::ChatInput input;
  input.messages = nlohmann::ordered_json::parse(R"([
    {"role": "user", "content": "Hi, <b>you</b> é 42\n"},
    {"role": "assistant", "content": null, "tool_calls": [
      {"id": "123456789", "function": {"name": "f", "arguments": {"a": 1.5, "b": [true, {}]}}}]},
    {"role": "tool", "content": [{"type": "text", "text": "x"}, {"type": "image"}]}])");
  input.tools = nlohmann::ordered_json::parse(R"([{"function": {"name": "f"}}])");
  input.extra = {{"n", 5}, {"l", {3, 1, 2}}, {"d", {{"b", 1}, {"a", "x"}}}, {"s", "Some Text"}};
  input.bos_token = "<s>";
  return input;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const longspur::io::ChatInput kInput = conversation();
  longspur::io::ChatTemplateLimits limits;
  limits.steps = 200'000;
  limits.output_bytes = 1 << 20;
  try {
    const std::string source(reinterpret_cast<const char*>(data), size);
    const auto segments = longspur::io::ChatTemplate::parse(source, limits)->render(kInput);
    for (size_t i = 1; i < segments.size(); ++i) {
      if (segments[i].special == segments[i - 1].special) std::abort();
    }
  } catch (const longspur::Error&) {
  }
  return 0;
}
