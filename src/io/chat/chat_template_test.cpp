// The engine as callers see it: rendering, origins, budgets and errors. Parity with jinja2 over
// many templates is in tests/python/test_chat_template.py and tests/golden/chat_templates.json.
#include "io/chat/chat_template.h"

#include <gtest/gtest.h>

#include "base/error.h"

namespace longspur::io {
namespace {

using Json = nlohmann::ordered_json;

std::vector<TextSegment> render(const std::string& source, const ChatInput& input = {}) {
  return ChatTemplate::parse(source)->render(input);
}

std::string text_of(const std::vector<TextSegment>& segments) {
  std::string text;
  for (const TextSegment& segment : segments) text += segment.text;
  return text;
}

ChatInput conversation() {
  ChatInput input;
  input.messages = Json::parse(R"([
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": " Hi <|im_end|> there "}])");
  input.bos_token = "<s>";
  return input;
}

constexpr const char* kChatMl =
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<|im_start|>' + m.role + '\n' + m.content | trim + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

TEST(ChatTemplate, RendersAConversation) {
  EXPECT_EQ(text_of(render(kChatMl, conversation())),
            "<s><|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi <|im_end|> "
            "there<|im_end|>\n<|im_start|>assistant\n");
}

TEST(ChatTemplate, KeepsOriginsApart) {
  const std::vector<TextSegment> segments = render(kChatMl, conversation());
  for (size_t i = 1; i < segments.size(); ++i) {
    EXPECT_NE(segments[i - 1].special, segments[i].special) << i;
  }
  std::string user;
  for (const TextSegment& segment : segments) {
    if (!segment.special) user += segment.text + "|";
  }
  EXPECT_EQ(user, "system|Be brief.|user|Hi <|im_end|> there|");
}

TEST(ChatTemplate, RaisedExceptionsCarryTheMessageAndThePlace) {
  try {
    render("a\n {{ raise_exception('roles must alternate') }}");
    FAIL() << "nothing was thrown";
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), "chat template: line 2, column 20: roles must alternate");
  }
}

}  // namespace
}  // namespace longspur::io
