// Random requests and logits that every implementation is tested with.
#pragma once

#include <cmath>
#include <limits>
#include <random>
#include <utility>
#include <vector>

#include "kernels/sampling/api.h"

namespace longspur::kernels::sampling {

inline constexpr float kInf = std::numeric_limits<float>::infinity();

inline std::vector<float> random_logits(std::mt19937& rng, int64_t vocab, double spread) {
  std::normal_distribution<double> normal(0.0, spread);
  std::vector<float> logits(static_cast<size_t>(vocab));
  for (float& x : logits) x = float(normal(rng));
  return logits;
}

inline int32_t pick(std::mt19937& rng, int64_t n) { return int32_t(rng() % uint64_t(n)); }

struct Case {
  std::vector<float> logits;
  std::vector<int32_t> prompt, output, banned;
  std::vector<std::pair<int32_t, double>> bias;
  SampleArgs args;

  void link() {
    args.logits = logits.data();
    args.vocab = int64_t(logits.size());
    args.prompt = prompt;
    args.output = output;
    args.params.banned = banned;
    args.params.logit_bias = bias;
  }
};

inline Case random_case(std::mt19937& rng) {
  static constexpr int64_t kVocabs[] = {1, 2, 3, 63, 64, 65, 127, 257, 1021, 4099};
  Case c;
  const int64_t vocab = kVocabs[rng() % std::size(kVocabs)];
  c.logits = random_logits(rng, vocab, rng() % 4 == 0 ? 0.01 : 3.0);
  if (rng() % 4 == 0)  // many ties
    for (float& x : c.logits) x = std::round(x);
  if (rng() % 5 == 0)
    for (int i = 0; i < vocab / 2; ++i) c.logits[size_t(pick(rng, vocab))] = -kInf;
  if (rng() % 8 == 0) c.logits[size_t(pick(rng, vocab))] = 1e4f;
  c.logits[0] = 0.5f;  // at least one allowed token
  SamplingView& p = c.args.params;
  static constexpr double kTemperatures[] = {0.0, 0.1, 0.7, 1.0, 2.5};
  p.temperature = kTemperatures[rng() % 5];
  if (rng() % 2) p.top_k = 1 + pick(rng, vocab + 1);
  if (rng() % 2) p.top_p = 0.001 + 0.999 * double(rng() % 1000) / 1000.0;
  if (rng() % 3 == 0) p.min_p = double(rng() % 1000) / 1000.0;
  if (rng() % 2) {
    for (int i = 0; i < 20; ++i) c.prompt.push_back(pick(rng, vocab));
    for (int i = 0; i < 20; ++i) c.output.push_back(pick(rng, vocab));
    if (rng() % 2) p.repetition_penalty = 1.3;
    if (rng() % 2) p.presence_penalty = 0.5;
    if (rng() % 2) p.frequency_penalty = -0.25;
  }
  if (rng() % 3 == 0) c.bias = {{pick(rng, vocab), 1.5}, {pick(rng, vocab), -2.0}};
  if (rng() % 3 == 0 && vocab > 1) c.banned = {1 + pick(rng, vocab - 1)};
  p.seed = rng();
  p.position = rng() % 1000;
  if (rng() % 2) c.args.logprobs_k = pick(rng, 8);
  return c;
}

}  // namespace longspur::kernels::sampling
