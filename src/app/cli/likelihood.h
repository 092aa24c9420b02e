// How likely a model holds a token to be.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <span>

namespace longspur::app::cli {

// -log softmax(logits)[target], in nats; the sum in double. logits: [V]
inline double negative_log_likelihood(std::span<const float> logits, int32_t target) {
  const float largest = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const float logit : logits) sum += double(std::exp(logit - largest));
  return std::log(sum) + double(largest) - double(logits[size_t(target)]);
}

}  // namespace longspur::app::cli
