// Sampling parameters from settings.
#pragma once

#include <cstdint>

#include "app/cli/settings.h"
#include "request/request.h"

namespace longspur::app::cli {

// Options of the group kSampling. Throws UsageError on what no vocabulary could make right.
SamplingParams sampling_params(const Settings& settings);
// The same check once the vocabulary is known.
void check_sampling(const SamplingParams& params, int64_t vocab);

}  // namespace longspur::app::cli
