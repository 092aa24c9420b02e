// A model's rotary embedding as the attention kernels want it.
#pragma once

#include "io/files/model_config.h"
#include "kernels/attention/rope.h"

namespace longspur::models {

kernels::attention::RopeParams rope_params(const io::ModelConfig& config);

}  // namespace longspur::models
