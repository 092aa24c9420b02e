// What a product's inputs look like on text: X^T X over the calibration tokens, the largest
// magnitude of each channel, the number of tokens. Sums in fp32 over blocks of tokens that are
// themselves summed in fp32 (relative error of an entry below 1e-5 of sqrt(H_ii H_jj)).
#pragma once

#include <array>
#include <cstdint>
#include <utility>
#include <vector>

#include "base/thread_pool.h"
#include "quant/float_decoder.h"

namespace longspur::quant {

struct InputStats {
  int64_t k = 0;
  int64_t tokens = 0;
  std::vector<float> gram;    // [K, K], symmetric: sum over tokens of x^T x
  std::vector<float> absmax;  // [K]
  Matrix sample;              // [some rows, K] of the inputs, evenly spread over the first batch

  std::vector<float> diagonal() const;  // [K]
  float largest() const;                // of absmax
};

// gram += x^T y for x [T, K], y [T, M]; gram: [K, M]. y = x: only the lower triangle is computed,
// then mirrored.
void add_gram(const Matrix& x, const Matrix& y, std::vector<float>& gram, ThreadPool& pool);

inline constexpr int64_t kSampleRows = 256;  // of InputStats::sample

// Adds the rows of x to the statistics (empty ones begin here).
void add_inputs(const Matrix& x, InputStats& stats, ThreadPool& pool);

using LayerStats = std::array<InputStats, kSites>;

// Collects the statistics of each product of one layer.
class CalibrationObserver : public InputObserver {
 public:
  explicit CalibrationObserver(ThreadPool& pool) : pool_(pool) {}
  void reads(Site site, const Matrix& x) override { add_inputs(x, stats_[size_t(site)], pool_); }

  LayerStats take() { return std::move(stats_); }

 private:
  ThreadPool& pool_;
  LayerStats stats_;
};

}  // namespace longspur::quant
