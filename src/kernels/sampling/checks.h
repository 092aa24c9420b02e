// What every implementation refuses before it reads a logit.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/sampling/api.h"

namespace longspur::kernels::sampling::detail {

// Ranges of the parameters and of the vocabulary.
void check_params(const SampleArgs& args);

// Ids of prompt, output, bans and bias, which edits of the logits will index with.
void check_ids(const SampleArgs& args);

// True when the parameters leave every logit as it is.
bool keeps_logits(const SamplingView& params);

// The draw in [0, 1), as 53 bits.
uint64_t draw_bits(const SamplingView& params);

}  // namespace longspur::kernels::sampling::detail
