// One timed run through the engine: prompts prefilled, then every step decodes a token of each.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/engine.h"

namespace longspur::app::cli::bench {

struct EngineRun {
  double prefill_s = 0;                      // from submit until every sequence has a token
  engine::AttentionStats attention;          // of it
  std::vector<double> step_s;                // [steps]
  std::vector<std::vector<int32_t>> tokens;  // of each sequence, greedy, as many as it has
};

// The engine must be idle and have room (Plan::options_for). Steps are timed whole: scheduling,
// sampling and text included.
EngineRun run_engine(engine::Engine& engine,
                     const std::vector<std::vector<int32_t>>& prompts,
                     int64_t steps);

// Runs until clocks, caches and memory have settled: at least 0.3 s.
void warm_up(engine::Engine& engine);

}  // namespace longspur::app::cli::bench
