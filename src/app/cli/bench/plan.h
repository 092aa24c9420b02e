// What `longspur bench` will run, decided before a model is loaded.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "app/cli/settings.h"
#include "engine/engine.h"

namespace longspur::app::cli::bench {

struct Plan {
  engine::EngineOptions engine;
  std::vector<int64_t> lengths;  // tokens of context before decoding, rising
  std::vector<int64_t> batches;  // sequences decoded together, rising
  int64_t tokens = 0;            // decode steps that are timed
  int64_t repeat = 0;
  int64_t vocab = 0;

  int64_t longest() const { return lengths.back(); }
  // Context and cache for `batch` sequences of up to `length` tokens and what is decoded after.
  engine::EngineOptions options_for(int64_t batch, int64_t length) const;
  // Lengths that a batch is measured at: all of them alone, the shortest together.
  std::vector<int64_t> lengths_of(int64_t batch) const;
};

// Opens the model's headers. Lengths that were not asked for by name shrink to the model's context;
// those that were are refused when they do not fit.
Plan make_plan(const Settings& settings);

// Random ids of one sequence; the same whatever the length, so that a shorter prompt begins a
// longer one.
std::vector<int32_t> random_prompt(int64_t sequence, int64_t length, int64_t vocab);

}  // namespace longspur::app::cli::bench
