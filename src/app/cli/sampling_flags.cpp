#include "app/cli/sampling_flags.h"

#include <algorithm>
#include <charconv>
#include <limits>

#include "base/error.h"

namespace longspur::app::cli {

namespace {

constexpr int64_t kAnyVocabulary = std::numeric_limits<int32_t>::max();

template <class T>
bool parse_all(std::string_view text, T& value) {
  const auto [stop, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc() && stop == text.data() + text.size() && !text.empty();
}

// "1234:-5.5", "1234:-inf"
std::pair<int32_t, double> parse_bias(const std::string& text) {
  const size_t colon = text.find(':');
  std::pair<int32_t, double> bias;
  if (colon == std::string::npos ||
      !parse_all(std::string_view(text).substr(0, colon), bias.first) ||
      !parse_all(std::string_view(text).substr(colon + 1), bias.second)) {
    throw UsageError(concat("--logit-bias: found '", text, "', expected ID:VALUE, such as 42:-5"));
  }
  return bias;
}

int32_t token_id(int64_t id) {
  if (id >= kAnyVocabulary)
    throw UsageError(concat("--stop-id: found ", id, ", expected a token id"));
  return int32_t(id);
}

// "top_p: found 2" -> "--top-p: found 2"; the flag of stop_ids names one id at a time.
std::string as_flag(const std::string& message) {
  const size_t colon = message.find(':');
  std::string name = message.substr(0, colon);
  std::replace(name.begin(), name.end(), '_', '-');
  if (name == "stop-ids") name.pop_back();
  return concat("--", name, message.substr(colon));
}

}  // namespace

SamplingParams sampling_params(const Settings& settings) {
  SamplingParams params;
  params.max_tokens = settings.integer("max-tokens");
  params.min_tokens = settings.integer("min-tokens");
  params.temperature = settings.number("temperature");
  params.top_k = settings.integer("top-k");
  params.top_p = settings.number("top-p");
  params.min_p = settings.number("min-p");
  params.repetition_penalty = settings.number("repetition-penalty");
  params.presence_penalty = settings.number("presence-penalty");
  params.frequency_penalty = settings.number("frequency-penalty");
  params.seed = uint64_t(settings.integer("seed"));
  params.stop = settings.texts("stop");
  params.ignore_eos = settings.flag("ignore-eos");
  if (settings.has("logprobs")) params.logprobs = settings.integer("logprobs");
  for (const std::string& bias : settings.texts("logit-bias"))
    params.logit_bias.push_back(parse_bias(bias));
  for (const int64_t id : settings.integers("stop-id")) params.stop_ids.push_back(token_id(id));
  check_sampling(params, kAnyVocabulary);
  return params;
}

void check_sampling(const SamplingParams& params, int64_t vocab) {
  try {
    validate(params, vocab);
  } catch (const Error& error) {
    throw UsageError(as_flag(error.what()));
  }
}

}  // namespace longspur::app::cli
