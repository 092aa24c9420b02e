// How far a model's predictions are from a reference model's, over rows of logits on the same text:
// mean KL(reference || model) in nats, agreement of the most likely token, and the negative
// log-likelihood of the text under both. Exponentials in fp32 (relative error 2e-7), sums in double
// over pieces of at most 1,024 terms in fp32.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/thread_pool.h"
#include "quant/float_layer.h"

namespace longspur::quant {

struct Divergence {
  double kl = 0, nll_reference = 0, nll = 0;  // sums
  int64_t rows = 0, agreeing = 0, scored = 0;

  Divergence& operator+=(const Divergence& other);
  double mean_kl() const { return kl / double(rows); }
  double mean_nll() const { return nll / double(scored); }
  double mean_nll_reference() const { return nll_reference / double(scored); }
  double top1() const { return double(agreeing) / double(rows); }
};

// Row r of both predicts next[r]; -1: nothing to score (the last token of a window).
// reference, found: [rows, V].
Divergence compare_logits(const Matrix& reference,
                          const Matrix& found,
                          std::span<const int32_t> next,
                          ThreadPool& pool);

}  // namespace longspur::quant
