// Time from the start of a `longspur generate` process to its first byte of text.
#pragma once

#include <string>

#include "app/cli/bench/result.h"
#include "engine/engine.h"

namespace longspur::app::cli::bench {

// A text of `tokens` tokens, or as near as the vocabulary allows.
std::string short_prompt(const io::Tokenizer& tokenizer, int64_t tokens);

// Runs this very program as a child `repeat` times, after one run that is not counted and leaves
// the files in the page cache. Nothing is measured of a model without a tokenizer.
Start measure_start(const engine::EngineOptions& options, int64_t repeat);

}  // namespace longspur::app::cli::bench
