// What a product's inputs look like on text: X^T X over the calibration tokens, the largest
// magnitude of each channel, the number of tokens. Sums in fp32 over blocks of tokens that are
// themselves summed in fp32 (relative error of an entry below 1e-5 of sqrt(H_ii H_jj)).
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "base/thread_pool.h"
#include "quant/float_decoder.h"

namespace longspur::quant {

struct InputStats {
  int64_t k = 0;
  int64_t tokens = 0;
  std::vector<float> gram;    // [K, K], symmetric: sum over tokens of x^T x
  std::vector<float> absmax;  // [K]

  std::vector<float> diagonal() const;  // [K]
  float largest() const;                // of absmax
};

// gram += x^T y for x, y [T, K]. y = x: only the lower triangle is computed, then mirrored.
void add_gram(const Matrix& x, const Matrix& y, std::vector<float>& gram, ThreadPool& pool);

// Adds the rows of x to the statistics (empty ones begin here).
void add_inputs(const Matrix& x, InputStats& stats, ThreadPool& pool);

// Collects the statistics of each product of one layer.
class CalibrationObserver : public InputObserver {
 public:
  explicit CalibrationObserver(ThreadPool& pool) : pool_(pool) {}
  void reads(Site site, const Matrix& x) override { add_inputs(x, stats_[size_t(site)], pool_); }

  const InputStats& of(Site site) const { return stats_[size_t(site)]; }
  InputStats& of(Site site) { return stats_[size_t(site)]; }

 private:
  ThreadPool& pool_;
  std::array<InputStats, kSites> stats_;
};

}  // namespace longspur::quant
