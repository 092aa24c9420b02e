// What a caller asks for and what it gets back: plain structs.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace longspur {

struct SamplingParams {
  int64_t max_tokens = 256;
  int64_t min_tokens = 0;    // eos and stop ids are not sampled before
  double temperature = 0.0;  // 0: greedy
  int64_t top_k = 0;         // 0: off
  double top_p = 1.0;
  double min_p = 0.0;
  double repetition_penalty = 1.0;  // over prompt and output (transformers' definition)
  double presence_penalty = 0.0;    // over output
  double frequency_penalty = 0.0;   // over output
  std::vector<std::pair<int32_t, double>> logit_bias;
  uint64_t seed = 0;
  std::vector<std::string> stop;  // text ends before the first of these
  std::vector<int32_t> stop_ids;  // end like eos; not part of the text
  bool ignore_eos = false;
  std::optional<int64_t>
      logprobs;  // k: log-probability of the token and of the k best; nullopt: none
};

// Throws Error naming the field, the value and the range.
void validate(const SamplingParams& params, int64_t vocab);

struct Request {
  std::string id;
  std::vector<int32_t> prompt;  // token ids, at least one
  SamplingParams sampling;
  // Of sparse attention to this prompt, for all heads: the share of attention that selection keeps,
  // from 0 to 1 (1: dense); nullopt: the engine's.
  std::optional<double> attention_threshold = std::nullopt;
};

// Throws Error naming the field unless the threshold is a number from 0 to 1.
void validate_threshold(const char* field, double threshold);

enum class FinishReason { kNone, kStop, kLength, kCancelled, kError };
std::string_view finish_reason_name(FinishReason reason);  // "stop", "length", "cancelled", "error"

struct TokenLogprob {
  int32_t id = 0;
  double logprob = 0.0;  // of the raw model distribution, before temperature and filters
  std::vector<std::pair<int32_t, double>> top;
};

// One step's news of one request.
struct RequestUpdate {
  std::string id;
  std::vector<int32_t> tokens;         // new since the last update
  std::string text;                    // new text, whole UTF-8 characters, stop strings removed
  std::vector<TokenLogprob> logprobs;  // one a new token when asked for
  FinishReason finish = FinishReason::kNone;
  std::string error;  // for kError
};

}  // namespace longspur
