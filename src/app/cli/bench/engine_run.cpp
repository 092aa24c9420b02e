#include "app/cli/bench/engine_run.h"

#include <algorithm>
#include <limits>
#include <map>

#include "app/cli/answer.h"
#include "app/cli/bench/plan.h"
#include "app/cli/interrupt.h"
#include "base/error.h"

namespace longspur::app::cli::bench {

namespace {

constexpr double kWarmUpSeconds = 0.3;

std::string id_of(size_t sequence) { return concat("bench-", sequence); }

void submit_all(engine::Engine& engine, const std::vector<std::vector<int32_t>>& prompts) {
  for (size_t i = 0; i < prompts.size(); ++i) {
    Request request;
    request.id = id_of(i);
    request.prompt = prompts[i];
    request.sampling.max_tokens = std::numeric_limits<int32_t>::max();
    request.sampling.ignore_eos = true;
    engine.submit(std::move(request));
  }
}

// One step's tokens, added to those of the sequences.
void take(std::vector<RequestUpdate> updates, EngineRun& run) {
  for (const RequestUpdate& update : updates) {
    require(update.finish == FinishReason::kNone,
            "bench: a sequence ended early: ", finish_reason_name(update.finish), " ",
            update.error);
    const size_t sequence = std::stoul(update.id.substr(update.id.find('-') + 1));
    std::vector<int32_t>& tokens = run.tokens.at(sequence);
    tokens.insert(tokens.end(), update.tokens.begin(), update.tokens.end());
  }
}

bool all_begun(const EngineRun& run) {
  return std::none_of(run.tokens.begin(), run.tokens.end(),
                      [](const auto& tokens) { return tokens.empty(); });
}

void cancel_all(engine::Engine& engine, size_t sequences) {
  for (size_t i = 0; i < sequences; ++i) engine.cancel(id_of(i));
  while (engine.busy()) engine.step();
}

}  // namespace

EngineRun run_engine(engine::Engine& engine,
                     const std::vector<std::vector<int32_t>>& prompts,
                     int64_t steps) {
  EngineRun run;
  run.tokens.resize(prompts.size());
  engine.reset_stats();
  const double begin = monotonic_seconds();
  submit_all(engine, prompts);
  while (!all_begun(run)) {
    check_interrupt();
    take(engine.step(), run);
  }
  run.prefill_s = monotonic_seconds() - begin;
  run.attention = engine.stats().attention;
  for (int64_t step = 0; step < steps; ++step) {
    check_interrupt();
    const double start = monotonic_seconds();
    std::vector<RequestUpdate> updates = engine.step();
    run.step_s.push_back(monotonic_seconds() - start);
    LONGSPUR_ASSERT(updates.size() == prompts.size());  // else it was no step of the whole batch
    take(std::move(updates), run);
  }
  cancel_all(engine, prompts.size());
  return run;
}

void warm_up(engine::Engine& engine) {
  const int64_t length = std::max<int64_t>(1, std::min<int64_t>(64, engine.max_context() - 10));
  const int64_t steps = std::min<int64_t>(8, engine.max_context() - length - 2);
  const std::vector<std::vector<int32_t>> prompt = {
      random_prompt(0, length, engine.config().vocab)};
  const double begin = monotonic_seconds();
  do {
    run_engine(engine, prompt, steps);
  } while (monotonic_seconds() - begin < kWarmUpSeconds);
}

}  // namespace longspur::app::cli::bench
