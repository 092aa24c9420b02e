// What a run reports: the parts of --json objects and the statistics on stderr.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "app/cli/answer.h"
#include "app/cli/settings.h"
#include "engine/engine.h"
#include "io/tokenizer/tokenizer.h"

namespace longspur::app::cli {

using Json = nlohmann::ordered_json;

// Most memory this process ever had resident. Not getrusage(): that starts at the parent's.
int64_t peak_rss_bytes();

Json usage_json(int64_t prompt_tokens, int64_t completion_tokens);
Json timing_json(const engine::EngineStats& stats);
Json memory_json(const engine::EngineStats& stats);
Json attention_json(const Settings& settings, const engine::EngineStats& stats);
// null when none were asked for; without a tokenizer the items have ids but no texts
Json logprobs_json(const std::vector<TokenLogprob>& logprobs,
                   const SamplingParams& params,
                   const engine::Engine& engine);

// Lines of figures for a person.
std::string statistics(const engine::EngineStats& stats,
                       int64_t prompt_tokens,
                       const TimedAnswer& timed);

}  // namespace longspur::app::cli
