// Checks of what a caller asks for. Everything the sampler and the engine rely on is checked here,
// once, before a request is queued; a message names the field, the value and the range.
#include "request/request.h"

#include <cmath>
#include <limits>
#include <string_view>

#include "base/error.h"

namespace longspur {

namespace {

void check_range(const char* field, double value, double low, double high, const char* expected) {
  require(value >= low && value <= high, field, ": found ", value, ", expected ", expected);
}

void check_id(const char* field, int64_t id, int64_t vocab) {
  require(id >= 0 && id < vocab, field, ": found token id ", id, ", expected 0 to ", vocab - 1);
}

void check_numbers(const SamplingParams& p) {
  constexpr double kLargest = std::numeric_limits<float>::max();
  check_range("temperature", p.temperature, 0.0, kLargest, "a number of at least 0");
  require(p.top_k >= 0, "top_k: found ", p.top_k, ", expected at least 0 (0: off)");
  require(p.top_p > 0.0 && p.top_p <= 1.0, "top_p: found ", p.top_p,
          ", expected above 0 and at most 1");
  check_range("min_p", p.min_p, 0.0, 1.0, "0 to 1");
  // The bounds keep logit * penalty finite and away from zero in fp32.
  check_range("repetition_penalty", p.repetition_penalty, 0.01, 100.0, "0.01 to 100");
  check_range("presence_penalty", p.presence_penalty, -100.0, 100.0, "-100 to 100");
  check_range("frequency_penalty", p.frequency_penalty, -100.0, 100.0, "-100 to 100");
}

}  // namespace

void validate(const SamplingParams& params, int64_t vocab) {
  require(vocab >= 1, "vocab: found ", vocab, ", expected at least 1");
  require(params.max_tokens >= 1, "max_tokens: found ", params.max_tokens, ", expected at least 1");
  require(params.min_tokens >= 0 && params.min_tokens <= params.max_tokens, "min_tokens: found ",
          params.min_tokens, ", expected 0 to max_tokens (", params.max_tokens, ")");
  check_numbers(params);
  for (const auto& [id, bias] : params.logit_bias) {
    check_id("logit_bias", id, vocab);
    const bool ban = bias == -std::numeric_limits<double>::infinity();
    require(ban || std::abs(bias) <= 1e6, "logit_bias of token ", id, ": found ", bias,
            ", expected -1e6 to 1e6 or -inf");
  }
  for (const std::string& stop : params.stop)
    require(!stop.empty(), "stop: found an empty string, expected at least one byte");
  for (const int32_t id : params.stop_ids) check_id("stop_ids", id, vocab);
  if (params.logprobs)
    require(*params.logprobs >= 0 && *params.logprobs <= vocab, "logprobs: found ",
            *params.logprobs, ", expected 0 to ", vocab);
}

void validate_threshold(const char* field, double threshold) {
  check_range(field, threshold, 0.0, 1.0, "0 to 1");
}

std::string_view finish_reason_name(FinishReason reason) {
  switch (reason) {
    case FinishReason::kNone:
      return "";
    case FinishReason::kStop:
      return "stop";
    case FinishReason::kLength:
      return "length";
    case FinishReason::kCancelled:
      return "cancelled";
    case FinishReason::kError:
      return "error";
  }
  throw InternalError("finish_reason_name: found a value outside the enum");
}

}  // namespace longspur
