#include "app/cli/eval/tasks.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "base/error.h"

namespace longspur::app::cli::eval {
namespace {

std::vector<int32_t> encode_bytes(const std::string& text) { return {text.begin(), text.end()}; }

std::string text_of(const std::vector<int32_t>& ids, int64_t begin, int64_t end) {
  return {ids.begin() + begin, ids.begin() + end};
}

std::string prompt_of(const Sample& sample) { return text_of(sample.tokens, 0, sample.answer); }
std::string answer_of(const Sample& sample) {
  return text_of(sample.tokens, sample.answer, int64_t(sample.tokens.size()));
}

TEST(EvalTasks, PromptAndAnswerHaveTheLengthAskedFor) {
  for (const Task task : {Task::kPasskey, Task::kNeedle, Task::kQuote}) {
    for (const int64_t length : {601, 1024, 4099}) {
      for (const double depth : {0.0, 0.37, 1.0}) {
        const Sample sample = make_sample({task, length, depth, 3}, "", encode_bytes);
        EXPECT_EQ(int64_t(sample.tokens.size()), length) << task_name(task) << " " << depth;
        EXPECT_GT(sample.answer, 0);
        EXPECT_LT(sample.answer, length);
      }
    }
  }
}

TEST(EvalTasks, TheAnswerStandsInThePromptAtItsDepth) {
  const int64_t length = 4000;
  for (const Task task : {Task::kPasskey, Task::kNeedle}) {
    size_t last = 0;
    for (const double depth : {0.0, 0.5, 1.0}) {
      const Sample sample = make_sample({task, length, depth, 5}, "", encode_bytes);
      const size_t at = prompt_of(sample).find(answer_of(sample));
      ASSERT_NE(at, std::string::npos) << task_name(task);
      EXPECT_NEAR(double(at), depth * double(length), 500) << task_name(task);
      EXPECT_GE(at, last);
      last = at;
    }
  }
}

TEST(EvalTasks, AQuoteGoesOnWithAPassageOfTheText) {
  const std::string text = made_up_text(3000, 9);
  for (const double depth : {0.0, 0.6, 1.0}) {
    const Sample sample = make_sample({Task::kQuote, 2500, depth, 0}, text, encode_bytes);
    const std::string passage =
        text_of(sample.tokens, sample.answer - 40, int64_t(sample.tokens.size()));
    EXPECT_EQ(passage.size(), 100u);
    EXPECT_LT(prompt_of(sample).find(passage), size_t(sample.answer) - 100) << depth;
  }
}

TEST(EvalTasks, SeedsChooseKeysAndNeedles) {
  for (const Task task : {Task::kPasskey, Task::kNeedle}) {
    const auto answer = [&](uint64_t seed) {
      return answer_of(make_sample({task, 2000, 0.5, seed}, "", encode_bytes));
    };
    EXPECT_EQ(answer(1), answer(1));
    bool differs = false;
    for (uint64_t seed = 2; seed < 6; ++seed) differs = differs || answer(seed) != answer(1);
    EXPECT_TRUE(differs) << task_name(task);
  }
}

TEST(EvalTasks, AShortTextIsRepeated) {
  const Sample sample = make_sample({Task::kNeedle, 1500, 0.5, 0}, "ten bytes.", encode_bytes);
  EXPECT_EQ(sample.tokens.size(), 1500u);
}

TEST(EvalTasks, LengthsWithoutRoomAreRefused) {
  for (const Task task : {Task::kPasskey, Task::kNeedle, Task::kQuote}) {
    try {
      make_sample({task, 60, 0.5, 0}, "", encode_bytes);
      FAIL() << task_name(task);
    } catch (const UsageError& error) {
      EXPECT_NE(std::string(error.what()).find("--lengths: found 60, expected at least"),
                std::string::npos);
    }
  }
  EXPECT_THROW(parse_task("haystack"), UsageError);
}

TEST(EvalTasks, MadeUpTextIsLongEnoughAndVaried) {
  const std::string text = made_up_text(20000, 1);
  EXPECT_GE(text.size(), 20000u);
  EXPECT_NE(text, made_up_text(20000, 2));
  EXPECT_EQ(text.substr(500, 200).find(text.substr(0, 200)), std::string::npos);
}

}  // namespace
}  // namespace longspur::app::cli::eval
