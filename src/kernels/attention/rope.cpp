#include "kernels/attention/rope.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace longspur::kernels::attention {

namespace {

// 1 / base^(2 i / dim), rounded to fp32 as transformers computes it: the power in fp32.
std::vector<float> plain_frequencies(double base, int64_t dim) {
  std::vector<float> inverse;
  for (int64_t i = 0; i < dim / 2; ++i) {
    inverse.push_back(1.0f / float(std::pow(base, double(float(2 * i) / float(dim)))));
  }
  return inverse;
}

std::vector<float> dynamic_frequencies(const RopeParams& p, int64_t seq_len) {
  const double trained =
      double(p.original_max_position > 0 ? p.original_max_position : p.max_position);
  const double length = std::max(double(seq_len), trained);
  const double dim = double(p.rotary_dim);
  const double base =
      p.theta * std::pow(p.factor * length / trained - (p.factor - 1.0), dim / (dim - 2.0));
  return plain_frequencies(base, p.rotary_dim);
}

std::vector<float> llama3_frequencies(const RopeParams& p) {
  const double trained =
      double(p.original_max_position > 0 ? p.original_max_position : p.max_position);
  const double long_wave = trained / p.low_freq_factor, short_wave = trained / p.high_freq_factor;
  std::vector<float> inverse = plain_frequencies(p.theta, p.rotary_dim);
  for (float& f : inverse) {
    const double wave = 2.0 * std::numbers::pi / double(f);
    if (wave < short_wave) continue;
    if (wave > long_wave) {
      f = float(double(f) / p.factor);
      continue;
    }
    const double smooth =
        (trained / wave - p.low_freq_factor) / (p.high_freq_factor - p.low_freq_factor);
    f = float((1.0 - smooth) * double(f) / p.factor + smooth * double(f));
  }
  return inverse;
}

double yarn_mscale(double scale, double mscale) {
  return scale <= 1.0 ? 1.0 : 0.1 * mscale * std::log(scale) + 1.0;
}

double yarn_attention_factor(const RopeParams& p, double factor) {
  if (p.attention_factor) return *p.attention_factor;
  if (p.mscale && p.mscale_all_dim && *p.mscale != 0.0 && *p.mscale_all_dim != 0.0) {
    return yarn_mscale(factor, *p.mscale) / yarn_mscale(factor, *p.mscale_all_dim);
  }
  return yarn_mscale(factor, 1.0);
}

// Fast dimensions keep their frequency, slow ones are interpolated, a ramp lies between.
RopeFrequencies yarn_frequencies(const RopeParams& p) {
  const double trained =
      double(p.original_max_position > 0 ? p.original_max_position : p.max_position);
  const double factor = p.factor;
  const double dim = double(p.rotary_dim);
  const auto correction = [&](double rotations) {
    return dim * std::log(trained / (rotations * 2.0 * std::numbers::pi)) /
           (2.0 * std::log(p.theta));
  };
  double low = correction(p.beta_fast), high = correction(p.beta_slow);
  if (p.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, dim - 1.0);
  if (low == high) high += 0.001;
  RopeFrequencies result;
  result.attention_factor = yarn_attention_factor(p, factor);
  const std::vector<float> plain = plain_frequencies(p.theta, p.rotary_dim);
  for (size_t i = 0; i < plain.size(); ++i) {
    const double ramp = std::clamp((double(i) - low) / (high - low), 0.0, 1.0);
    const double keep = 1.0 - ramp;
    result.inverse.push_back(
        float(double(plain[i]) / factor * (1.0 - keep) + double(plain[i]) * keep));
  }
  return result;
}

}  // namespace

RopeFrequencies rope_frequencies(const RopeParams& params, int64_t seq_len) {
  RopeFrequencies result;
  switch (params.kind) {
    case RopeKind::kNone:
      result.inverse = plain_frequencies(params.theta, params.rotary_dim);
      break;
    case RopeKind::kLinear:
      result.inverse = plain_frequencies(params.theta, params.rotary_dim);
      for (float& f : result.inverse) f = float(double(f) / params.factor);
      break;
    case RopeKind::kDynamic:
      result.inverse = dynamic_frequencies(params, seq_len);
      break;
    case RopeKind::kLlama3:
      result.inverse = llama3_frequencies(params);
      break;
    case RopeKind::kYarn:
      result = yarn_frequencies(params);
      break;
  }
  for (size_t i = 0; i < params.freq_factors.size() && i < result.inverse.size(); ++i) {
    result.inverse[i] /= params.freq_factors[i];
  }
  return result;
}

RopeTable make_rope_table(const RopeParams& params, int64_t positions, int64_t seq_len) {
  const RopeFrequencies frequencies = rope_frequencies(params, seq_len);
  RopeTable table;
  table.cos.reserve(size_t(positions) * frequencies.inverse.size());
  table.sin.reserve(size_t(positions) * frequencies.inverse.size());
  for (int64_t position = 0; position < positions; ++position) {
    for (const float f : frequencies.inverse) {
      const float angle = float(position) * f;  // in fp32, as transformers does
      table.cos.push_back(float(std::cos(double(angle)) * frequencies.attention_factor));
      table.sin.push_back(float(std::sin(double(angle)) * frequencies.attention_factor));
    }
  }
  return table;
}

}  // namespace longspur::kernels::attention
