#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>

#include "app/cli/batch_input.h"
#include "app/cli/batch_output.h"
#include "app/cli/option_table.h"
#include "app/cli/sampling_flags.h"
#include "app/cli/token_lists.h"
#include "base/error.h"
#include "request/request.h"

namespace longspur::app::cli {
namespace {

using testing::HasSubstr;
using Json = nlohmann::ordered_json;

std::string message_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const Error& error) {
    return error.what();
  }
  return "nothing was thrown";
}

BatchRequest parse_one(const std::string& text, const SamplingParams& defaults = {}) {
  return parse_batch_line(index_batch(text, "in").at(0), "in", defaults);
}

TEST(BatchInput, EveryFieldArrives) {
  const SamplingParams p =
      parse_one(
          R"({"id":"a","prompt":"hi","max_tokens":3,"min_tokens":1,"temperature":1,"top_k":2,)"
          R"("top_p":0.5,"min_p":0.25,"repetition_penalty":1.5,"presence_penalty":-1,)"
          R"("frequency_penalty":2,"logit_bias":{"7":-3.5},"seed":18446744073709551615,)"
          R"("stop":"x","stop_ids":[4],"ignore_eos":true,"logprobs":2})")
          .sampling;
  EXPECT_EQ(p.max_tokens, 3);
  EXPECT_EQ(p.min_tokens, 1);
  EXPECT_EQ(p.temperature, 1.0);
  EXPECT_EQ(p.top_k, 2);
  EXPECT_EQ(p.top_p, 0.5);
  EXPECT_EQ(p.min_p, 0.25);
  EXPECT_EQ(p.repetition_penalty, 1.5);
  EXPECT_EQ(p.presence_penalty, -1.0);
  EXPECT_EQ(p.frequency_penalty, 2.0);
  EXPECT_EQ(p.logit_bias, (std::vector<std::pair<int32_t, double>>{{7, -3.5}}));
  EXPECT_EQ(p.seed, ~uint64_t(0));
  EXPECT_EQ(p.stop, std::vector<std::string>{"x"});
  EXPECT_EQ(p.stop_ids, std::vector<int32_t>{4});
  EXPECT_TRUE(p.ignore_eos);
  EXPECT_EQ(p.logprobs, 2);
}

TEST(BatchInput, AThresholdOfSparseAttention) {
  EXPECT_EQ(parse_one(R"({"prompt":"x","attention_threshold":0.8})").attention_threshold, 0.8);
  EXPECT_FALSE(parse_one(R"({"prompt":"x"})").attention_threshold);
}

TEST(BatchInput, MissingFieldsAreTheDefaults) {
  SamplingParams defaults;
  defaults.max_tokens = 77;
  defaults.stop = {"s"};
  EXPECT_EQ(parse_one(R"({"prompt":"x"})", defaults).sampling.max_tokens, 77);
  EXPECT_EQ(parse_one(R"({"prompt":"x"})", defaults).sampling.stop, defaults.stop);
}

TEST(BatchInput, ThreeKindsOfPrompt) {
  EXPECT_EQ(std::get<std::string>(parse_one(R"({"prompt":"x"})").prompt), "x");
  EXPECT_EQ(std::get<std::vector<int32_t>>(parse_one(R"({"prompt":[5,6]})").prompt),
            (std::vector<int32_t>{5, 6}));
  const auto request = parse_one(R"({"messages":[{"role":"user","z":1,"a":2,"content":"x"}]})");
  EXPECT_EQ(std::get<Json>(request.prompt).dump(),
            R"([{"role":"user","z":1,"a":2,"content":"x"}])");  // keys keep their order
}

TEST(BatchInput, WrongLinesNameLineAndField) {
  const std::pair<const char*, const char*> cases[] = {
      {R"({"prompt":"x","max_tokns":1})", "in line 1: unknown field 'max_tokns'"},
      {R"({"prompt":"x","max_tokens":"1"})", "max_tokens: found string, expected an integer"},
      {R"({"prompt":"x","max_tokens":1.0})", "max_tokens: found number, expected an integer"},
      {R"({"prompt":"x","max_tokens":true})", "max_tokens: found boolean"},
      {R"({"prompt":"x","max_tokens":18446744073709551615})", "expected a smaller integer"},
      {R"({"prompt":"x","temperature":null})", "temperature: found null"},
      {R"({"prompt":"x","seed":-1})", "seed: found number"},
      {R"({"prompt":"x","attention_threshold":1.5})", "attention_threshold: found 1.5, expected 0"},
      {R"({"prompt":"x","attention_threshold":"all"})", "attention_threshold: found string"},
      {R"({"prompt":"x","stop":[1]})", "stop: found number, expected a string"},
      {R"({"prompt":"x","stop_ids":[-1]})", "stop_ids: found -1"},
      {R"({"prompt":"x","logit_bias":{"a":1}})", "found the key 'a'"},
      {R"({"prompt":"x","logit_bias":[]})", "logit_bias: found array"},
      {R"({"prompt":"x","messages":[]})", "both prompt and messages"},
      {R"({"id":"x"})", "neither prompt nor messages"},
      {R"({"prompt":""})", "empty text"},
      {R"({"prompt":7})", "prompt: found number"},
      {R"({"messages":[]})", "expected a list of messages"},
      {R"({"messages":[{"content":"x"}]})", "without a role"},
      {R"({"id":1.5,"prompt":"x"})", "id: found number, expected a string or an integer"},
      {R"({"prompt":"x","prompt":"y"})", "'prompt' twice"},
      {R"(["x"])", "expected a JSON object"},
      {R"({"prompt":"x")", "invalid JSON"},
      {"{\"prompt\":\"\xff\"}", "invalid JSON"},
  };
  for (const auto& [line, message] : cases)
    EXPECT_THAT(message_of([&, text = line] { parse_one(text); }), HasSubstr(message)) << line;
}

TEST(BatchInput, LinesWithoutIdGoByNumber) {
  const std::string text = "{\"prompt\":\"x\"}\n\n  \r\nbroken\n{\"id\":\"1\",\"prompt\":\"x\"}";
  const auto lines = index_batch(text, "in");
  ASSERT_EQ(lines.size(), 3u);
  EXPECT_EQ(lines[0].key, "1");
  EXPECT_EQ(lines[1].key, "4");
  EXPECT_FALSE(lines[1].error.empty());
  EXPECT_EQ(lines[2].key, "\"1\"");  // a string is not a number
}

TEST(BatchInput, SharedIdsAndEmptyFilesAreRefused) {
  const std::string twice = R"({"id":"a","prompt":"x"})"
                            "\n"
                            R"({"id":"a","prompt":"y"})";
  EXPECT_THAT(message_of([&] { index_batch(twice, "in"); }), HasSubstr("in lines 1 and 2"));
  const std::string clash = "{\"id\":2,\"prompt\":\"x\"}\n{\"prompt\":\"y\"}";
  EXPECT_THAT(message_of([&] { index_batch(clash, "in"); }), HasSubstr("id 2"));
  EXPECT_THAT(message_of([] { index_batch("\n\n", "in"); }), HasSubstr("found no lines"));
}

// A result file in a folder of its own.
class BatchOutputTest : public testing::Test {
 protected:
  BatchOutputTest()
      : folder_(std::filesystem::temp_directory_path() /
                concat("longspur-batch-",
                       getpid(),
                       "-",
                       testing::UnitTest::GetInstance()->current_test_info()->name())) {
    std::filesystem::create_directories(folder_);
  }
  ~BatchOutputTest() override { std::filesystem::remove_all(folder_); }

  std::string path() const { return folder_ / "out.jsonl"; }
  void write(const std::string& text) { std::ofstream(path(), std::ios::binary) << text; }
  std::string read() const {
    std::ifstream file(path(), std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
  }

  std::filesystem::path folder_;
};

const char* const kDone = "{\"id\":\"a\",\"finish_reason\":\"stop\"}\n";
const char* const kFailed = "{\"id\":2,\"finish_reason\":\"error\",\"error\":\"x\"}\n";

TEST_F(BatchOutputTest, KnowsWhatIsFinished) {
  write(std::string(kDone) + kFailed);
  const BatchOutput output(path());
  EXPECT_EQ(output.finished(), (std::set<std::string>{"\"a\"", "2"}));
  EXPECT_EQ(output.failed(), 1);
}

TEST_F(BatchOutputTest, ATornLastLineIsDroppedWhereverItIsCut) {
  const std::string whole = std::string(kDone) + kFailed;
  const std::string first = kDone;
  for (size_t size = first.size(); size < whole.size(); ++size) {
    write(whole.substr(0, size));
    BatchOutput output(path());
    EXPECT_EQ(output.finished().size(), 1u) << size;
    output.append(Json::parse(kFailed));
    EXPECT_EQ(read(), whole) << size;
  }
}

TEST_F(BatchOutputTest, RefusesFilesThatAreNotItsOwn) {
  const std::string twice = std::string(kDone) + kDone;
  for (const std::string& text : {std::string("my notes\n"), std::string("{}\n"), twice}) {
    write(text);
    EXPECT_THAT(message_of([&] { BatchOutput output(path()); }), HasSubstr("out.jsonl line"));
    EXPECT_EQ(read(), text);  // untouched
  }
}

TEST_F(BatchOutputTest, TwoRunsCannotShareAFile) {
  const BatchOutput first(path());
  EXPECT_THAT(message_of([&] { BatchOutput second(path()); }), HasSubstr("in use"));
}

TEST_F(BatchOutputTest, UnwritablePlacesAreNamed) {
  EXPECT_THAT(message_of([&] { BatchOutput output(folder_ / "no" / "x"); }), HasSubstr("no/x"));
  EXPECT_THAT(message_of([&] { BatchOutput output(folder_.string()); }), HasSubstr("directory"));
  BatchOutput full("/dev/full");
  EXPECT_THAT(message_of([&] { full.append(Json::parse(kDone)); }), HasSubstr("No space left"));
}

TEST(TokenLists, TakesListsOfIdsOnly) {
  EXPECT_EQ(parse_token_list("[0, 9]", "f", 10), (std::vector<int32_t>{0, 9}));
  EXPECT_TRUE(parse_token_list("[]", "f", 10).empty());
  for (const char* bad : {"", "1", "{}", "[-1]", "[10]", "[1.0]", "[true]", "[\"1\"]", "[null]",
                          "[[1]]", "[1,]", "[99999999999999999999]"})
    EXPECT_THAT(message_of([&] { parse_token_list(bad, "f", 10); }), HasSubstr("f: found")) << bad;
  EXPECT_EQ(parse_token_lists("[[1],[2,3]]", "f", 10, 2).size(), 2u);
  for (const char* bad : {"[]", "[1]", "[[]]", "[[1,2,3]]", "[[1],[10]]", "[[[1]]]"})
    EXPECT_THAT(message_of([&] { parse_token_lists(bad, "f", 10, 2); }), HasSubstr("f: ")) << bad;
  const std::string deep(100000, '[');
  EXPECT_THAT(message_of([&] { parse_token_lists(deep, "f", 10, 2); }), HasSubstr("nested"));
}

// Settings of a verb with the sampling options.
SamplingParams sampling_of(const FlagTexts& flags) {
  const std::vector<Option> table = verb_options({}, {OptionGroup::kSampling});
  const auto none = [](const std::string&) -> const char* { return nullptr; };
  return sampling_params(merge_settings(table, flags, none, {}));
}

TEST(SamplingFlags, ArriveInTheParameters) {
  EXPECT_EQ(sampling_of({}).max_tokens, SamplingParams().max_tokens);
  EXPECT_EQ(sampling_of({}).temperature, 0.0);
  EXPECT_FALSE(sampling_of({}).logprobs.has_value());
  EXPECT_EQ(sampling_of({{"logprobs", {"0"}}}).logprobs, 0);
  EXPECT_EQ(sampling_of({{"stop-id", {"3", "4"}}}).stop_ids, (std::vector<int32_t>{3, 4}));
  const auto biases = sampling_of({{"logit-bias", {"5:-inf", "6:1.5"}}}).logit_bias;
  EXPECT_EQ(biases[0].second, -std::numeric_limits<double>::infinity());
  EXPECT_EQ(biases[1], (std::pair<int32_t, double>{6, 1.5}));
}

TEST(SamplingFlags, MistakesAreUsageErrorsWithTheFlagsName) {
  const std::pair<FlagTexts, const char*> cases[] = {
      {{{"top-p", {"0"}}}, "--top-p: found 0"},
      {{{"min-p", {"1.1"}}}, "--min-p: found 1.1"},
      {{{"min-tokens", {"300"}}}, "--min-tokens: found 300"},
      {{{"repetition-penalty", {"0"}}}, "--repetition-penalty"},
      {{{"stop", {""}}}, "--stop: found an empty string"},
      {{{"logit-bias", {"5"}}}, "--logit-bias: found '5'"},
      {{{"logit-bias", {"x:1"}}}, "--logit-bias: found 'x:1'"},
      {{{"logit-bias", {"1:nan"}}}, "--logit-bias"},
      {{{"stop-id", {"3000000000"}}}, "--stop-id: found 3000000000"},
  };
  for (const auto& [flags, message] : cases) {
    try {
      sampling_of(flags);
      ADD_FAILURE() << message;
    } catch (const UsageError& error) {
      EXPECT_THAT(error.what(), HasSubstr(message));
    }
  }
  SamplingParams params;
  params.stop_ids = {50};
  EXPECT_THAT(message_of([&] { check_sampling(params, 50); }), HasSubstr("--stop-id: found"));
}

}  // namespace
}  // namespace longspur::app::cli
