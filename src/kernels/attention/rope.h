// Rotary position embedding tables for every scaling that transformers defines
// (modeling_rope_utils): linear; dynamic NTK; llama3 (Llama 3.1's frequency bands); YaRN (Peng et
// al., 2023).
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

namespace longspur::kernels::attention {

enum class RopeKind { kNone, kLinear, kDynamic, kLlama3, kYarn };

struct RopeParams {
  RopeKind kind = RopeKind::kNone;
  double theta = 10000.0;
  int64_t rotary_dim = 0;
  double factor = 1.0;
  int64_t max_position = 0;                              // the model's
  int64_t original_max_position = 0;                     // before scaling; 0: max_position
  double low_freq_factor = 1.0, high_freq_factor = 4.0;  // llama3
  double beta_fast = 32.0, beta_slow = 1.0;              // yarn
  std::optional<double> attention_factor, mscale, mscale_all_dim;
  bool truncate = true;
  std::vector<float> freq_factors;  // divisors [rotary_dim / 2], or empty
};

struct RopeTable {
  std::vector<float> cos, sin;  // [positions, rotary_dim / 2], attention factor included
};

// Angles of positions 0 .. positions - 1. seq_len matters to dynamic scaling alone: the length that
// the frequencies are chosen for.
RopeTable make_rope_table(const RopeParams& params, int64_t positions, int64_t seq_len);

// Inverse frequencies [rotary_dim / 2] in fp32, and the factor on cos and sin.
struct RopeFrequencies {
  std::vector<float> inverse;
  double attention_factor = 1.0;
};
RopeFrequencies rope_frequencies(const RopeParams& params, int64_t seq_len);

}  // namespace longspur::kernels::attention
