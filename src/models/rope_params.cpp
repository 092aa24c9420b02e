#include "models/rope_params.h"

namespace longspur::models {

namespace attention = kernels::attention;

attention::RopeParams rope_params(const io::ModelConfig& config) {
  using Kind = io::RopeScaling::Kind;
  const io::RopeScaling& scaling = config.rope_scaling;
  attention::RopeParams params;
  switch (scaling.kind) {
    case Kind::kNone:
      params.kind = attention::RopeKind::kNone;
      break;
    case Kind::kLinear:
      params.kind = attention::RopeKind::kLinear;
      break;
    case Kind::kDynamic:
      params.kind = attention::RopeKind::kDynamic;
      break;
    case Kind::kLlama3:
      params.kind = attention::RopeKind::kLlama3;
      break;
    case Kind::kYarn:
      params.kind = attention::RopeKind::kYarn;
      break;
  }
  params.theta = config.rope_theta;
  params.rotary_dim = config.rotary_dim;
  params.factor = scaling.factor;
  params.max_position = config.max_position;
  params.original_max_position = scaling.original_max_position;
  params.low_freq_factor = scaling.low_freq_factor;
  params.high_freq_factor = scaling.high_freq_factor;
  params.beta_fast = scaling.beta_fast;
  params.beta_slow = scaling.beta_slow;
  params.attention_factor = scaling.attention_factor;
  params.mscale = scaling.mscale;
  params.mscale_all_dim = scaling.mscale_all_dim;
  params.truncate = scaling.truncate;
  params.freq_factors = config.rope_freq_factors;
  return params;
}

}  // namespace longspur::models
