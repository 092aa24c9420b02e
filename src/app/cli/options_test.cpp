#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "app/cli/command_line.h"
#include "app/cli/completion.h"
#include "app/cli/config_file.h"
#include "app/cli/help.h"
#include "app/cli/option_table.h"
#include "base/error.h"

namespace longspur::app::cli {
namespace {

using testing::HasSubstr;

Verb write_verb() {
  return {.name = "write",
          .summary = "writes",
          .examples = {"longspur write"},
          .options = verb_options(
              {{.name = "prompt", .group = "Text", .letter = 'p'},
               {.name = "special", .type = OptionType::kFlag, .fallback = "true", .group = "Text"}},
              {OptionGroup::kModel, OptionGroup::kEngine, OptionGroup::kSampling},
              {{"max-tokens", "7"}})};
}

Verb read_verb() {
  return {.name = "read",
          .summary = "reads",
          .options = verb_options({{.name = "lines", .type = OptionType::kInteger, .low = 1},
                                   {.name = "source", .positional = true}},
                                  {OptionGroup::kModel})};
}

std::vector<Verb> verbs() { return {write_verb(), read_verb()}; }

FlagTexts flags(std::vector<std::string> arguments, const Verb& verb = write_verb()) {
  return parse_command_line(verb, arguments);
}

std::string message_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const UsageError& error) {
    EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos) << error.what();
    return error.what();
  }
  return "nothing was thrown";
}

// Settings of the verb write from the three places.
struct Fixture {
  Verb verb = write_verb();
  Settings merge(std::vector<std::string> arguments,
                 std::map<std::string, std::string> environment = {},
                 const std::string& config = "") {
    const std::vector<Verb> all = verbs();
    return merge_settings(
        verb.options, parse_command_line(verb, arguments),
        [&](const std::string& name) {
          const auto found = environment.find(name);
          return found == environment.end() ? nullptr : found->second.c_str();
        },
        parse_config(config, "c.toml", verb, all));
  }
};

TEST(CommandLine, TakesValuesAsTheyAre) {
  using Texts = std::vector<std::string>;
  EXPECT_EQ(flags({"-p", "--json"}).at("prompt"), Texts{"--json"});
  EXPECT_EQ(flags({"-p", ""}).at("prompt"), Texts{""});
  EXPECT_EQ(flags({"--prompt=", "--json"}).at("prompt"), Texts{""});
  EXPECT_EQ(flags({"--prompt=a=b"}).at("prompt"), Texts{"a=b"});
  EXPECT_EQ(flags({"-p", "--stop="}).at("prompt"), Texts{"--stop="});
  EXPECT_EQ(flags({"--presence-penalty", "-1.5"}).at("presence-penalty"), Texts{"-1.5"});
  EXPECT_EQ(flags({"--stop", "[a,b]", "--stop", "c d"}).at("stop"), (Texts{"[a,b]", "c d"}));
  EXPECT_EQ(flags({"-n", "1", "-n", "2"}).at("max-tokens"), Texts{"2"});
  EXPECT_EQ(flags({"file"}, read_verb()).at("source"), Texts{"file"});
  EXPECT_EQ(flags({"--source", "file"}, read_verb()).at("source"), Texts{"file"});
}

TEST(CommandLine, FlagsCanBeTurnedOff) {
  EXPECT_EQ(flags({"--no-special"}).at("special"), std::vector<std::string>{"false"});
  EXPECT_EQ(flags({"--json"}).at("json"), std::vector<std::string>{"true"});
  EXPECT_FALSE(flags({}).contains("json"));
}

TEST(CommandLine, RefusesWhatItDoesNotKnow) {
  EXPECT_THAT(message_of([] { flags({"--max-tokns", "3"}); }), HasSubstr("--max-tokens?"));
  EXPECT_THAT(message_of([] { flags({"word"}); }), HasSubstr("'word'"));
  EXPECT_THAT(message_of([] { flags({"--max-tokens"}); }), HasSubstr("max-tokens"));
  EXPECT_THAT(message_of([] { flags({"-q"}); }), HasSubstr("'-q'"));
}

TEST(Settings, FlagBeatsEnvironmentBeatsConfigBeatsDefault) {
  Fixture f;
  EXPECT_EQ(f.merge({}).integer("max-tokens"), 7);
  EXPECT_EQ(f.merge({}, {}, "max-tokens = 8").integer("max-tokens"), 8);
  EXPECT_EQ(f.merge({}, {{"LONGSPUR_MAX_TOKENS", "9"}}, "max-tokens = 8").integer("max-tokens"), 9);
  const Settings all = f.merge({"-n", "10"}, {{"LONGSPUR_MAX_TOKENS", "9"}}, "max-tokens = 8");
  EXPECT_EQ(all.integer("max-tokens"), 10);
  EXPECT_TRUE(all.given("max-tokens"));
  EXPECT_FALSE(all.given("top-k"));
}

TEST(Settings, EnvironmentKnowsListsAndFlags) {
  Fixture f;
  EXPECT_EQ(f.merge({}, {{"LONGSPUR_STOP", R"(["a", "b"])"}}).texts("stop").size(), 2u);
  EXPECT_EQ(f.merge({}, {{"LONGSPUR_STOP", "[not json"}}).texts("stop").front(), "[not json");
  EXPECT_EQ(f.merge({}, {{"LONGSPUR_STOP_ID", "[1, 2]"}}).integers("stop-id"),
            (std::vector<int64_t>{1, 2}));
  EXPECT_TRUE(f.merge({}, {{"LONGSPUR_JSON", "yes"}}).flag("json"));
  EXPECT_EQ(f.merge({}, {{"LONGSPUR_MAX_TOKENS", ""}}).integer("max-tokens"), 7);
  EXPECT_THAT(message_of([&] {
                f.merge({}, {{"LONGSPUR_MAX_TOKENS", "x"}});
              }),
              HasSubstr("LONGSPUR_MAX_TOKENS: found 'x', expected an integer"));
}

TEST(Settings, ValuesAreChecked) {
  Fixture f;
  for (const char* bad : {"", "x", "1.5", "0", "-3", "99999999999999999999", "3 "})
    EXPECT_THAT(message_of([&] {
                  f.merge({"--max-tokens", bad});
                }),
                HasSubstr("--max-tokens"))
        << bad;
  for (const char* bad : {"nan", "inf", "-1", "1e999", "0x1"})
    EXPECT_THAT(message_of([&] {
                  f.merge({"--temperature", bad});
                }),
                HasSubstr("--temperature"))
        << bad;
  EXPECT_THAT(message_of([&] { f.merge({"--compute", "fp64"}); }), HasSubstr("default or fp32"));
}

TEST(Config, KeysAndTypes) {
  Fixture f;
  EXPECT_EQ(f.merge({}, {}, "max_tokens = 8").integer("max-tokens"), 8);
  EXPECT_EQ(f.merge({}, {}, "top-p = 1").number("top-p"), 1.0);
  EXPECT_EQ(f.merge({}, {}, "stop = 'x'").texts("stop"), std::vector<std::string>{"x"});
  EXPECT_EQ(f.merge({}, {}, "lines = 3\nmodel = 'm'").text("model"), "m");  // read's option
  const std::string both = "max-tokens = 8\n[write]\nmax-tokens = 9\n[read]\nlines = 4";
  EXPECT_EQ(f.merge({}, {}, both).integer("max-tokens"), 9);
}

TEST(Config, MistakesNameFileLineAndKey) {
  Fixture f;
  const std::pair<const char*, const char*> cases[] = {
      {"\nmax-tokns = 1", "c.toml line 2: max-tokns: unknown key"},
      {"[write]\nlines = 1", "c.toml line 2: lines: unknown key, write has no such option"},
      {"[wrte]\nx = 1", "c.toml line 1: wrte: unknown key"},
      {"max-tokens = '8'", "found a text, expected an integer"},
      {"max-tokens = 0", "found 0, expected at least 1"},
      {"lines = 0", "found 0, expected at least 1"},
      {"max-tokens = 1\nmax_tokens = 2", "found twice"},
      {"temperature = nan", "finite"},
      {"config = 'x'", "unknown key"},
      {"json = 1", "found an integer, expected true or false"},
      {"stop = [1]", "found an array, expected a text or several"},
      {"max-tokens =", "c.toml line 1"},
  };
  for (const auto& [config, message] : cases)
    EXPECT_THAT(message_of([&, text = config] { f.merge({}, {}, text); }), HasSubstr(message));
}

TEST(Config, PrintedConfigReadsBackTheSame) {
  Fixture f;
  const Settings settings = f.merge({"-p", "a \"quoted\"\n\\ \x7f line", "--stop", "1", "--stop",
                                     "\t", "--stop-id", "3", "--temperature", "0.1", "--top-p", "1",
                                     "--seed", "9007199254740993", "--no-special"});
  const std::string printed = print_config_toml(settings);
  EXPECT_EQ(print_config_toml(f.merge({}, {}, printed)).find("flag"), std::string::npos);
  const Settings again = f.merge({}, {}, printed);
  for (const Setting& setting : settings.all()) {
    if (setting.option->only_flag) continue;
    const auto same = [&](const Setting& s) { return s.option->name == setting.option->name; };
    const auto found = std::find_if(again.all().begin(), again.all().end(), same);
    EXPECT_EQ(found->value, setting.value) << setting.option->name;
  }
}

TEST(Help, ShowsEveryOptionWithinItsWidth) {
  const std::string help = verb_help(write_verb());
  for (const Option& option : write_verb().options) EXPECT_THAT(help, HasSubstr(flag_name(option)));
  size_t begin = 0;
  while (begin < help.size()) {
    const size_t end = help.find('\n', begin);
    EXPECT_LE(end - begin, 96u) << help.substr(begin, end - begin);
    begin = end + 1;
  }
}

TEST(Completion, HoldsVerbsAndFlags) {
  const std::vector<Verb> all = verbs();
  for (const std::string& script :
       {bash_completion(all), zsh_completion(all), fish_completion(all)}) {
    EXPECT_THAT(script, HasSubstr("write"));
    EXPECT_THAT(script, HasSubstr("max-tokens"));
  }
}

}  // namespace
}  // namespace longspur::app::cli
