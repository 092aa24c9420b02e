#include "request/request.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>

#include "base/error.h"

namespace longspur {
namespace {

std::string message_of(const std::function<void(SamplingParams&)>& change) {
  SamplingParams params;
  change(params);
  try {
    validate(params, 100);
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

TEST(Request, DefaultsAndOrdinaryValuesAreValid) {
  EXPECT_EQ(message_of([](SamplingParams&) {}), "");
  EXPECT_EQ(message_of([](SamplingParams& p) {
              p.max_tokens = p.min_tokens = 5;
              p.temperature = 0.7;
              p.top_k = 1000;  // more than the vocabulary: off
              p.top_p = 0.9;
              p.min_p = 0.05;
              p.repetition_penalty = 1.1;
              p.logit_bias = {{99, -INFINITY}, {0, 3.5}};
              p.stop = {"\n\n"};
              p.stop_ids = {0, 99};
              p.logprobs = 0;
            }),
            "");
}

TEST(Request, EveryBadFieldIsNamed) {
  struct Case {
    const char* starts;
    std::function<void(SamplingParams&)> change;
  };
  const Case cases[] = {
      {"max_tokens: found 0", [](auto& p) { p.max_tokens = 0; }},
      {"min_tokens: found -1", [](auto& p) { p.min_tokens = -1; }},
      {"min_tokens: found 300", [](auto& p) { p.min_tokens = 300; }},
      {"temperature: found -1", [](auto& p) { p.temperature = -1; }},
      {"temperature: found nan", [](auto& p) { p.temperature = NAN; }},
      {"temperature: found inf", [](auto& p) { p.temperature = INFINITY; }},
      {"top_k: found -1", [](auto& p) { p.top_k = -1; }},
      {"top_p: found 0", [](auto& p) { p.top_p = 0; }},
      {"top_p: found 1.5", [](auto& p) { p.top_p = 1.5; }},
      {"top_p: found nan", [](auto& p) { p.top_p = NAN; }},
      {"min_p: found -0.1", [](auto& p) { p.min_p = -0.1; }},
      {"min_p: found 1.1", [](auto& p) { p.min_p = 1.1; }},
      {"repetition_penalty: found 0", [](auto& p) { p.repetition_penalty = 0; }},
      {"presence_penalty: found nan", [](auto& p) { p.presence_penalty = NAN; }},
      {"frequency_penalty: found inf", [](auto& p) { p.frequency_penalty = INFINITY; }},
      {"logit_bias: found token id 100",
       [](auto& p) {
         p.logit_bias = {{100, 1.0}};
       }},
      {"logit_bias: found token id -1",
       [](auto& p) {
         p.logit_bias = {{-1, 1.0}};
       }},
      {"logit_bias of token 3: found inf",
       [](auto& p) {
         p.logit_bias = {{3, INFINITY}};
       }},
      {"logit_bias of token 3: found nan",
       [](auto& p) {
         p.logit_bias = {{3, NAN}};
       }},
      {"stop: found an empty string",
       [](auto& p) {
         p.stop = {"a", ""};
       }},
      {"stop_ids: found token id 100", [](auto& p) { p.stop_ids = {100}; }},
      {"logprobs: found -1", [](auto& p) { p.logprobs = -1; }},
      {"logprobs: found 101", [](auto& p) { p.logprobs = 101; }},
  };
  for (const Case& c : cases) {
    const std::string message = message_of(c.change);
    EXPECT_EQ(message.substr(0, std::string(c.starts).size()), c.starts);
    EXPECT_NE(message.find("expected"), std::string::npos) << message;
  }
}

TEST(Request, FinishReasonsHaveStableNames) {
  EXPECT_EQ(finish_reason_name(FinishReason::kNone), "");
  EXPECT_EQ(finish_reason_name(FinishReason::kStop), "stop");
  EXPECT_EQ(finish_reason_name(FinishReason::kLength), "length");
  EXPECT_EQ(finish_reason_name(FinishReason::kCancelled), "cancelled");
  EXPECT_EQ(finish_reason_name(FinishReason::kError), "error");
}

}  // namespace
}  // namespace longspur
