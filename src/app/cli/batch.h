// `generate --input x.jsonl --output y.jsonl`: many sequences in flight, one result line as soon as
// each ends. A run that was stopped goes on where it was; what fails fails alone.
#pragma once

#include "app/cli/settings.h"

namespace longspur::app::cli {

// Returns the exit code: 0, 1 when a request failed, 128 + signal when interrupted.
int run_batch(const Settings& settings);

}  // namespace longspur::app::cli
