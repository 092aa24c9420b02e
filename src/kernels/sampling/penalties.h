// What changes single logits before the temperature: penalties, bias, bans.
#pragma once

#include <vector>

#include "kernels/sampling/api.h"

namespace longspur::kernels::sampling::detail {

// Changes logits [V] in place. counts is scratch, zero before and after.
void adjust_logits(const SampleArgs& args,
                   std::vector<float>& logits,
                   std::vector<int32_t>& counts);

}  // namespace longspur::kernels::sampling::detail
