// Thresholds of XAttention for the heads of a model: what each choice would list and lose, from one
// dense pass over a text, and the cheapest choice within a bound.
//
// A mask head is a query head, or a KV head whose query heads share one mask. For each of its
// candidate thresholds the profile has, over the query blocks of 128 rows in the last three
// quarters of each window:
//   density  listed blocks over visible ones
//   lost     true attention mass (exact softmax, mean over rows) of the blocks that are not listed
//   error    sum |o - o_dense| / sum |o_dense| over the output elements
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string_view>
#include <vector>

#include "kernels/xattn/api.h"
#include "quant/float_decoder.h"

namespace longspur::quant {

struct ThresholdChoice {
  float threshold = 0;
  double density = 0, lost = 0, error = 0;
};
struct HeadProfile {
  std::vector<ThresholdChoice> choices;  // by rising threshold
  // The released profiling rule of the authors: the share of the scores that was kept when every
  // row kept the blocks scored at least as high as the lowest-scored one of those that make up 90 %
  // of its true mass; the largest over texts.
  double profiled = 0;
};

struct ProfileOptions {
  kernels::xattn::Estimator estimator;
  kernels::xattn::SelectOptions select;
  bool per_head = false;          // a mask for each query head, else one for each KV head
  std::vector<float> candidates;  // rising, in [0, 1]
  bool with_error = true;         // costs as much again
};
std::vector<float> default_candidates();

// Profiles of [layers, mask heads]. Windows are sequences of their own.
std::vector<HeadProfile> profile_thresholds(const FloatDecoder& decoder,
                                            const models::DecoderTensors& tensors,
                                            std::span<const std::vector<int32_t>> windows,
                                            const ProfileOptions& options,
                                            const std::function<void(int64_t, int64_t)>& progress);

enum class Loss { kLost, kError };

// Index of each head's choice such that the sum of densities is least while the mean loss is at
// most `bound`: the multiple-choice knapsack, by dynamic programming over losses in units of 1/64
// of the bound (coarser above 512 heads), rounded up, so that the bound holds. The last choice of a
// head is dense or next to it: it counts as no loss, so that there is always an answer. Throws
// Error on a head without choices.
std::vector<size_t> choose_thresholds(std::span<const HeadProfile> heads, Loss loss, double bound);

// Minimum-threshold prediction as printed (Xu et al., 2025, section 2.3): D[h][m], the best
// performance with m reductions over the first h heads, is the larger of D[h - 1][m] and of the
// performance after head h is lowered one step (times `factor`) from the state of D[h - 1][m - 1].
// `evaluate` gives the performance of a model with these thresholds, larger is better; it is called
// up to heads * steps times.
struct PredictedThresholds {
  double performance = 0;
  std::vector<float> thresholds;  // [heads]
};
using Evaluate = std::function<double(std::span<const float> thresholds)>;
// The best state for each number of reductions from 0 to `steps`.
std::vector<PredictedThresholds> predict_minimum_thresholds(
    int64_t heads, int64_t steps, float start, float factor, const Evaluate& evaluate);

}  // namespace longspur::quant
