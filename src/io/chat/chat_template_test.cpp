// The engine as callers see it: golden conversations, origins, budgets and errors. Parity with
// jinja2 over random templates is in tests/python/test_chat_template.py.
#include "io/chat/chat_template.h"

#include <gtest/gtest.h>

#include <ctime>
#include <fstream>

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

std::string error_of(const std::string& source, const ChatInput& input = {}) {
  try {
    return "rendered: " + text_of(render(source, input));
  } catch (const Error& error) {
    return error.what();
  }
}

Json golden() {
  std::ifstream file(std::string(LONGSPUR_SOURCE_DIR) + "/tests/golden/chat_templates.json");
  return Json::parse(file);
}

ChatInput golden_input(const Json& all, const Json& entry) {
  ChatInput input;
  const Json& setting = all["settings"][entry["setting"].get<std::string>()];
  input.messages = all["conversations"][entry["conversation"].get<std::string>()];
  input.tools = setting.value("tools", Json());
  input.documents = setting.value("documents", Json());
  input.extra = setting.value("extra", Json::object());
  input.add_generation_prompt = setting.value("add_generation_prompt", true);
  input.bos_token = all["common"]["bos_token"];
  input.eos_token = all["common"]["eos_token"];
  input.now = all["common"]["now"];
  return input;
}

TEST(ChatTemplateGolden, EqualsJinja2) {
  const Json all = golden();
  int rendered = 0;
  for (const Json& entry : all["cases"]) {
    SCOPED_TRACE(entry["template"].get<std::string>() + "/" +
                 entry["conversation"].get<std::string>() + "/" +
                 entry["setting"].get<std::string>());
    const std::string source = all["templates"][entry["template"].get<std::string>()];
    const ChatInput input = golden_input(all, entry);
    if (entry["text"].is_null()) {
      EXPECT_THROW(render(source, input), Error);
    } else {
      EXPECT_EQ(text_of(render(source, input)), entry["text"].get<std::string>());
      ++rendered;
    }
  }
  EXPECT_GT(rendered, 100);
}

TEST(ChatTemplateGolden, SegmentsAlternate) {
  const Json all = golden();
  for (const Json& entry : all["cases"]) {
    if (entry["text"].is_null()) continue;
    const auto segments =
        render(all["templates"][entry["template"].get<std::string>()], golden_input(all, entry));
    for (size_t i = 0; i < segments.size(); ++i) {
      EXPECT_FALSE(segments[i].text.empty());
      if (i > 0) {
        EXPECT_NE(segments[i - 1].special, segments[i].special);
      }
    }
  }
}

// Strings that a user may write to be taken for the template's control tokens.
std::vector<std::string> injections() {
  std::vector<std::string> out = {
      "<|im_start|>", "<|im_end|>",        "<|start_header|>", "<|end_header|>",   "<|eot|>",
      "<|eom|>",      "<|python|>",        "[INST]",           "[/INST]",          "[TOOLS]",
      "[/TOOLS]",     "[CALLS]",           "[RESULTS]",        "[/RESULTS]",       "<s>",
      "</s>",         "<start_of_turn>",   "<end_of_turn>",    "<start_of_image>", "<|system|>",
      "<|user|>",     "<|assistant|>",     "<|end|>",          "<｜Ask｜>",        "<｜Reply｜>",
      "<｜end｜>",    "<｜calls▁begin｜>", "<think>",          "</think>",         "<tool_call>",
      "</tool_call>", "<tool_response>",   "<|start|>",        "<|channel|>",      "<|message|>"};
  const std::vector<std::string> single = out;
  for (size_t i = 0; i < 15; ++i) {  // broken up, doubled, with blanks around
    out.push_back(" " + single[i] + single[i + 1] + "\n" + single[i].substr(0, 3));
  }
  return out;
}

// Every string of a conversation and its tools becomes the injection between two marks.
Json injected(const Json& json, const std::string& text, const std::string& key = "") {
  if (json.is_string()) {
    const bool steers = key == "role" || key == "type" || key == "id" || key == "tool_call_id";
    return steers ? json : Json("\x01" + text + "\x02");
  }
  if (!json.is_structured()) return json;
  Json out = json;
  for (auto& [name, value] : out.items()) {
    value = injected(value, text, json.is_object() ? name : key);
  }
  return out;
}

TEST(ChatTemplateOrigin, UserTextIsNeverSpecial) {
  const Json all = golden();
  const std::vector<std::string> attacks = injections();
  ASSERT_EQ(attacks.size(), 50u);
  int marks = 0;
  for (const auto& [name, source] : all["templates"].items()) {
    const auto parsed = ChatTemplate::parse(source);
    for (const std::string& attack : attacks) {
      for (const char* chat : {"turns", "reasoning", "parts"}) {
        ChatInput input = golden_input(all, {{"conversation", chat}, {"setting", "tools"}});
        input.messages = injected(input.messages, attack);
        input.tools = injected(input.tools, attack);
        input.documents = injected(all["settings"]["documents"]["documents"], attack);
        std::vector<TextSegment> segments;
        try {
          segments = parsed->render(input);
        } catch (const Error&) {
          continue;  // a template without parts
        }
        for (const TextSegment& segment : segments) {
          const bool marked = segment.text.find_first_of("\x01\x02") != std::string::npos;
          EXPECT_FALSE(segment.special && marked) << name << ": " << segment.text;
          marks += marked;
        }
      }
    }
  }
  EXPECT_GT(marks, 5000);
}

// What a template does with the content; x is the user's, capitals are the template's.
TEST(ChatTemplateOrigin, SurvivesOperationsOnStrings) {
  const std::vector<std::string> expressions = {"'A' + c + 'B'",
                                                "'A' ~ c ~ 1",
                                                "c[2:5]",
                                                "c[::-1]",
                                                "c.strip() | upper | lower",
                                                "c.replace('xx', 'A' ~ c ~ 'A').replace('q', 'A')",
                                                "c.split('y') | join('A')",
                                                "['A', c] | join",
                                                "c | tojson",
                                                "[c] | string",
                                                "'%s-%s' % ('A', c)",
                                                "'{}|{:>9}'.format('A', c)",
                                                "c | trim | indent(2, true)",
                                                "c.center(20, 'A')",
                                                "c | list | join('A')",
                                                "{'A': c} | tojson(indent=2)",
                                                "c.partition('y') | join('A')",
                                                "c * 2",
                                                "c.splitlines() | join('A')",
                                                "c | replace('q', 'A')",
                                                "c | title | lower",
                                                "c.zfill(12)",
                                                "c | truncate(5, true, 'A', 0)",
                                                "(c ~ 'A').removesuffix('A')",
                                                "c | e | safe",
                                                "c | reverse | list | last",
                                                "c.rsplit('y', 1)[0] ~ 'A'",
                                                "messages | map(attribute='content') | join('A')",
                                                "messages | tojson",
                                                "messages | string",
                                                "messages[0].items() | list | string",
                                                "c | wordcount ~ c",
                                                "c | urlencode | replace('%0A', '')",
                                                "c.swapcase() | lower"};
  ChatInput input;
  input.messages = {{{"role", "z"}, {"content", "xxyzx\nxyx"}}};
  for (const std::string& expression : expressions) {
    std::string user;
    for (const TextSegment& segment :
         render("{% set c = messages[0].content %}{{ " + expression + " }}", input)) {
      if (segment.special) {
        EXPECT_EQ(segment.text.find_first_of("xyz"), std::string::npos) << expression;
      } else {
        EXPECT_EQ(segment.text.find('A'), std::string::npos) << expression;
        user += segment.text;
      }
    }
    EXPECT_NE(user.find_first_of("xyz"), std::string::npos) << expression;
  }
}

TEST(ChatTemplateOrigin, NumbersAndTokens) {
  ChatInput input;
  input.messages = Json::parse(R"([{"role": "user", "content": 41}])");
  input.bos_token = "<s>";
  const auto segments = render("{{ bos_token }}{{ messages[0].content + 1 }}{{ 7 }}", input);
  ASSERT_EQ(segments.size(), 3u);
  EXPECT_TRUE(segments[0].special);
  EXPECT_EQ(segments[1].text, "42");
  EXPECT_FALSE(segments[1].special);
  EXPECT_EQ(segments[2].text, "7");
}

TEST(ChatTemplateErrors, CarryTheMessageAndThePlace) {
  EXPECT_EQ(error_of("a\n {{ raise_exception('roles must alternate') }}"),
            "chat template: line 2, column 20: roles must alternate");
  EXPECT_EQ(error_of("{{ x.y }}"), "chat template: line 1, column 5: 'x' is undefined");
  EXPECT_EQ(error_of("é{% if %}"),
            "chat template: line 1, column 8: found '%}', expected an expression");
}

TEST(ChatTemplateErrors, Syntax) {
  const std::vector<std::string> sources = {"{{",
                                            "{{ x",
                                            "{% if x %}",
                                            "{% endif %}",
                                            "{% for x %}{% endfor %}",
                                            "{% for in y %}{% endfor %}",
                                            "{{ 1 + }}",
                                            "{{ (1 }}",
                                            "{{ [1, }}",
                                            "{{ {'a' 1} }}",
                                            "{{ 'open }}",
                                            "{% set = 1 %}",
                                            "{% set 1 = 1 %}",
                                            "{% macro m( %}{% endmacro %}",
                                            "{{ x | }}",
                                            "{{ x | nofilter }}",
                                            "{{ x is nosuchtest }}",
                                            "{% raw %}",
                                            "{# open",
                                            "{% unknown %}",
                                            "{% break %}",
                                            "{{ a b }}",
                                            "{{ x[1:2, }}",
                                            "{% include 'file' %}",
                                            "{% import 'os' as os %}",
                                            "{% if x %}{% endfor %}",
                                            "{{ f(a=1, 2) }}",
                                            "{{ 1 ! 2 }}",
                                            "{% macro m(a=1, b) %}{% endmacro %}",
                                            "{{ x is is }}"};
  for (const std::string& source : sources) {
    const std::string error = error_of(source);
    EXPECT_EQ(error.find("chat template: line "), 0u) << source << ": " << error;
    EXPECT_EQ(error.find('\n'), std::string::npos) << error;
  }
}

std::string repeated(const std::string& part, int times) {
  std::string out;
  for (int i = 0; i < times; ++i) out += part;
  return out;
}

// Templates that would run, grow or nest without end.
std::vector<std::string> bombs() {
  const std::string thousand = "range(1000)";
  return {
      "{% for a in range(100000) %}{% for b in range(100000) %}x{% endfor %}{% endfor %}",
      "{{ 'x' * 10**12 }}",
      "{{ [0] * 10**12 }}",
      "{{ range(10**12) | list }}",
      "{% set ns = namespace(s='x') %}{% for i in range(99) %}{% set ns.s = ns.s + ns.s %}{% "
      "endfor %}",
      "{% set ns = namespace(s=[1]) %}{% for i in range(99) %}{% set ns.s = ns.s + ns.s %}{% "
      "endfor %}",
      "{% set ns = namespace(s=[1]) %}{% for i in range(300) %}{% set ns.s = [ns.s] %}{% endfor %}",
      "{% set ns = namespace(s=[1]) %}{% for i in range(99) %}{% set ns.s = [ns.s, ns.s] %}{% "
      "endfor %}{{ ns.s }}",
      "{% set ns = namespace(s=[1]) %}{% for i in range(99) %}{% set ns.s = [ns.s, ns.s] %}{% "
      "endfor %}{{ ns.s | tojson }}",
      "{% set ns = namespace(s=[1]) %}{% for i in range(99) %}{% set ns.s = [ns.s, ns.s] %}{% "
      "endfor %}{{ ns.s == ns.s }}",
      "{% set ns = namespace(s=(1,)) %}{% for i in range(99) %}{% set ns.s = (ns.s, ns.s) %}{% "
      "endfor %}{{ {ns.s: 1} }}",
      "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
      "{% macro a() %}{{ b() }}{% endmacro %}{% macro b() %}{{ a() }}{% endmacro %}{{ a() }}",
      "{% macro m(n) %}{{ m(n) }}{{ m(n) }}{% endmacro %}{{ m(1) }}",
      "{{ 9**9**9**9**9 }}",
      "{{ '%1000000000d' % 1 }}",
      "{{ '{:1000000000}'.format(1) }}",
      "{{ 'x'.center(10**12) }}",
      "{{ 'a'.replace('', 'x' * 1000000).replace('x', 'y' * 100000) }}",
      "{% for i in range(100000) %}{{ 'x' * 100000 }}{% endfor %}",
      "{% set s = 'a' * 1000000 %}{% for i in range(100000) %}{{ s.count('b') }}{% endfor %}",
      "{% set s = 'ab' * 1000000 %}{% for i in range(100000) %}{{ s[500000] }}{% endfor %}",
      "{% for i in range(100000) %}{{ range(100000) | sum }}{% endfor %}",
      "{{ [[1]] | sum(start=[]) | batch(10**12, 0) | list }}",
      "{{ [1] | slice(10**12) | list }}",
      "{% set n = namespace() %}{% set n.n = n %}{{ n }}",
      "{{ " + repeated("(", 5000) + "1" + repeated(")", 5000) + " }}",
      "{{ " + repeated("[", 100000) + " }}",
      "{{ " + repeated("-", 100000) + "1 }}",
      repeated("{% if 1 %}", 50000),
      repeated("{% for x in y %}", 50000),
      "{{ " + repeated("1 if ", 50000) + " }}",
      "{{ 1" + repeated(" if 1", 50000) + " }}",
      "{{ x" + repeated(" is defined", 50000) + "(" + repeated("(", 50000) + " }}",
      "{{ " + repeated("f(", 50000) + " }}",
      "{{ x" + repeated("[y", 50000) + " }}",
      "{% for c in [1] recursive %}{{ loop([1]) }}{% endfor %}",
      "{% set ns = namespace(f=1) %}{% for i in range(300) %}{% set ns.f = [ns.f].count %}{% "
      "endfor %}",
      "{{ dict(" + repeated("a=1,", 200000) + ") }}"};
}

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr double kMostSeconds = 60.0;  // every byte of a string is checked
#else
constexpr double kMostSeconds = 2.0;
#endif

TEST(ChatTemplateBudget, BombsEndInAnErrorSoon) {
#ifdef __SANITIZE_THREAD__
  GTEST_SKIP() << "one thread: nothing for ThreadSanitizer, which takes minutes";
#endif
  for (const std::string& source : bombs()) {
    const std::clock_t start = std::clock();  // processor time: other programs do not count
    const std::string error = error_of(source);
    const double seconds = static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC;
    EXPECT_EQ(error.find("chat template: "), 0u)
        << source.substr(0, 100) << ": " << error.substr(0, 200);
    RecordProperty("ms " + source.substr(0, 60), std::to_string(seconds * 1e3));
    // 0.1 s in a release build on an idle machine; the margin is for busy ones.
    EXPECT_LT(seconds, kMostSeconds) << source.substr(0, 100);
  }
}

TEST(ChatTemplateBudget, LongChainsAreNotDeep) {
  EXPECT_EQ(text_of(render("{{ " + repeated("1 + ", 20000) + "1 }}")), "20001");
  EXPECT_EQ(text_of(render("{{ 'a'" + repeated("|upper|lower", 5000) + " }}")), "a");
  EXPECT_EQ(text_of(render("{{ " + repeated("not ", 10000) + "1 }}")), "True");
  EXPECT_EQ(
      text_of(render("{% if 0 %}" + repeated("{% elif 0 %}", 5000) + "{% else %}x{% endif %}")),
      "x");
}

TEST(ChatTemplateBudget, LimitsAreTheCallers) {
  ChatTemplateLimits limits;
  limits.output_bytes = 10;
  EXPECT_NO_THROW(ChatTemplate::parse("0123456789", limits)->render({}));
  EXPECT_THROW(ChatTemplate::parse("0123456789a", limits)->render({}), Error);
  limits = {};
  limits.template_bytes = 3;
  EXPECT_THROW(ChatTemplate::parse("0123", limits), Error);
  limits = {};
  limits.loop_iterations = 5;
  EXPECT_THROW(ChatTemplate::parse("{% for i in range(6) %}{% endfor %}", limits)->render({}),
               Error);
  limits = {};
  limits.steps = 3;
  EXPECT_THROW(ChatTemplate::parse("{{ 1 + 2 + 3 + 4 }}", limits)->render({}), Error);
}

TEST(ChatTemplateBudget, ALongConversationFits) {
  ChatInput input;
  for (int i = 0; i < 2000; ++i) {
    input.messages.push_back(
        {{"role", i % 2 == 0 ? "user" : "assistant"}, {"content", std::string(2000, 'x')}});
  }
  const Json all = golden();
  for (const auto& [name, source] : all["templates"].items()) {
    EXPECT_NO_THROW(render(source, input)) << name;
  }
}

TEST(ChatTemplate, StrangeBytesPassThrough) {
  ChatInput input;
  const std::string bytes = "\xFF\xC3(\xE2\x82 ok \xF0\x9F\x98\x80";
  input.messages = {{{"role", "user"}, {"content", bytes}}};
  EXPECT_EQ(text_of(render("{{ messages[0].content | trim }}", input)), bytes);
  EXPECT_EQ(text_of(render("{{ messages[0].content[::-1][::-1] }}", input)), bytes);
}

}  // namespace
}  // namespace longspur::io
