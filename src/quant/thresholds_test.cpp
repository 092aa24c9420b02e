#include "quant/thresholds.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "base/error.h"
#include "base/rng.h"

namespace longspur::quant {
namespace {

// Heads whose density falls and whose loss rises as the threshold falls; the last choice is dense.
std::vector<HeadProfile> random_heads(int64_t count, int64_t choices, uint64_t seed) {
  Noise noise(seed);
  std::vector<HeadProfile> heads(static_cast<size_t>(count));
  for (HeadProfile& head : heads) {
    double density = 0.05 + 0.1 * double(noise.next() + 1), lost = 0.3 + 0.1 * double(noise.next());
    for (int64_t c = 0; c + 1 < choices; ++c) {
      head.choices.push_back({float(c) / float(choices), density, lost, 2 * lost});
      density += 0.05 * double(noise.next() + 1);
      lost *= 0.5 + 0.2 * double(noise.next());
    }
    head.choices.push_back({1.0f, density + 0.1, 0.0, 0.0});
  }
  return heads;
}

struct Sum {
  double density = 0, lost = 0;
};
Sum sum_of(const std::vector<HeadProfile>& heads, const std::vector<size_t>& chosen) {
  Sum sum;
  for (size_t h = 0; h < heads.size(); ++h) {
    sum.density += heads[h].choices[chosen[h]].density;
    sum.lost += heads[h].choices[chosen[h]].lost;
  }
  return sum;
}

// Every combination.
double least_density(const std::vector<HeadProfile>& heads, double total) {
  std::vector<size_t> chosen(heads.size(), 0);
  double best = std::numeric_limits<double>::infinity();
  for (;;) {
    const Sum sum = sum_of(heads, chosen);
    if (sum.lost <= total) best = std::min(best, sum.density);
    size_t h = 0;
    while (h < heads.size() && ++chosen[h] == heads[h].choices.size()) chosen[h++] = 0;
    if (h == heads.size()) return best;
  }
}

TEST(ChooseThresholds, KeepsTheBoundAndIsNextToTheCheapest) {
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    const auto heads = random_heads(4, 5, seed);
    for (const double bound : {0.02, 0.06, 0.15}) {
      const Sum sum = sum_of(heads, choose_thresholds(heads, Loss::kLost, bound));
      EXPECT_LE(sum.lost, bound * 4 + 1e-12);
      // Losses are rounded up to 1/64 of the mean bound: as good as every choice with 4/256 less.
      EXPECT_LE(sum.density, least_density(heads, bound * 4 * (1 - 4.0 / 256)) + 1e-12);
    }
  }
}

TEST(ChooseThresholds, ALargerBoundIsNeverDearer) {
  const auto heads = random_heads(40, 12, 7);
  double before = std::numeric_limits<double>::infinity();
  for (const double bound : {0.0, 0.01, 0.05, 0.1, 0.2, 1.0}) {
    const double density = sum_of(heads, choose_thresholds(heads, Loss::kLost, bound)).density;
    EXPECT_LE(density, before);
    before = density;
  }
}

TEST(ChooseThresholds, NoLossAllowedIsDenseAndAnyLossIsTheSparsest) {
  const auto heads = random_heads(6, 5, 3);
  for (const size_t c : choose_thresholds(heads, Loss::kError, 0.0)) EXPECT_EQ(c, 4u);
  for (const size_t c : choose_thresholds(heads, Loss::kLost, 10.0)) EXPECT_EQ(c, 0u);
  EXPECT_THROW(choose_thresholds(std::vector<HeadProfile>(1), Loss::kLost, 0.1), Error);
}

TEST(ChooseThresholds, TheLossAskedForCounts) {
  const auto heads = random_heads(8, 6, 11);
  // The error of these heads is twice what they lose.
  EXPECT_EQ(choose_thresholds(heads, Loss::kError, 0.1),
            choose_thresholds(heads, Loss::kLost, 0.05));
}

TEST(PredictMinimumThresholds, FindsTheBestOfEveryNumberOfReductions) {
  // Lowering head h costs weights[h]; with independent heads the best m reductions are the m
  // cheapest, each once.
  const std::vector<double> weights = {5, 1, 4, 2, 3};
  const auto evaluate = [&](std::span<const float> thresholds) {
    double performance = 0;
    for (size_t h = 0; h < weights.size(); ++h)
      performance -= weights[h] * double(0.9f - thresholds[h]);
    return performance;
  };
  const auto states = predict_minimum_thresholds(5, 9, 0.9f, 0.9f, evaluate);
  ASSERT_EQ(states.size(), 6u);  // no more reductions than heads
  const double step = double(0.9f - 0.9f * 0.9f);
  const double costs[] = {0, 1, 3, 6, 10, 15};
  for (size_t m = 0; m < states.size(); ++m)
    EXPECT_NEAR(states[m].performance, -costs[m] * step, 1e-6) << m;
  EXPECT_EQ(states[2].thresholds[1], 0.9f * 0.9f);
  EXPECT_EQ(states[2].thresholds[3], 0.9f * 0.9f);
  EXPECT_EQ(states[2].thresholds[0], 0.9f);
}

}  // namespace
}  // namespace longspur::quant
