#include "app/cli/bench/plan.h"

#include <algorithm>

#include "app/cli/model.h"
#include "app/cli/number_list.h"
#include "base/error.h"
#include "base/rng.h"
#include "base/shape.h"

namespace longspur::app::cli::bench {

namespace {

constexpr uint64_t kSeed = 20240607;
// The prefill draws a token before the first timed step, and a full context would end a sequence.
constexpr int64_t kSpare = 2;

// Steps that sequences take before the last of them is prefilled: each may have decoded that many
// tokens when the timed steps begin.
int64_t prefill_steps(int64_t batch, int64_t length, int64_t chunk) {
  return ceil_div(batch * (length + 1), chunk) + batch;
}

}  // namespace

engine::EngineOptions Plan::options_for(int64_t batch, int64_t length) const {
  engine::EngineOptions options = engine;
  options.max_sequences = batch;
  options.max_context = length + tokens + kSpare +
                        (batch > 1 ? prefill_steps(batch, length, options.prefill_chunk) : 0);
  return options;
}

std::vector<int64_t> Plan::lengths_of(int64_t batch) const {
  return batch == 1 ? lengths : std::vector<int64_t>{lengths.front()};
}

Plan make_plan(const Settings& settings) {
  Plan plan;
  plan.engine = engine_options(settings);
  plan.tokens = settings.integer("tokens");
  plan.repeat = settings.integer("repeat");
  plan.batches = parse_number_list("--batch", settings.text("batch"), 1);
  plan.lengths = parse_number_list("--lengths", settings.text("lengths"), 1);
  const ModelLimits limits = model_limits(plan.engine);
  plan.vocab = limits.vocab;
  const int64_t room = limits.context - plan.tokens - kSpare;
  if (room < 1) {
    throw UsageError(concat("--tokens: found ", plan.tokens, ", expected at most ",
                            limits.context - kSpare - 1, " with a context of ", limits.context));
  }
  if (plan.longest() > room && settings.given("lengths")) {
    throw UsageError(concat("--lengths: found ", plan.longest(), ", expected at most ", room,
                            ": the context of ", limits.context, " less what is decoded"));
  }
  for (int64_t& length : plan.lengths) length = std::min(length, room);
  plan.lengths.erase(std::unique(plan.lengths.begin(), plan.lengths.end()), plan.lengths.end());
  return plan;
}

std::vector<int32_t> random_prompt(int64_t sequence, int64_t length, int64_t vocab) {
  std::vector<int32_t> ids;
  for (uint64_t i = 0; int64_t(ids.size()) < length; ++i)
    for (const uint32_t bits : philox4x32(kSeed, uint64_t(sequence), i))
      ids.push_back(int32_t(bits % uint64_t(vocab)));
  ids.resize(size_t(length));
  return ids;
}

}  // namespace longspur::app::cli::bench
