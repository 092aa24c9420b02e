// The plan of a budget against every subset.
#include "quant/budget.h"

#include <gtest/gtest.h>

#include "base/error.h"
#include "base/rng.h"

namespace longspur::quant {
namespace {

constexpr double kLow = 4.5, kHigh = 8.5;

double average_bits(std::span<const BudgetItem> items, const std::vector<bool>& kept) {
  double bits = 0, weights = 0;
  for (size_t i = 0; i < items.size(); ++i) {
    bits += double(items[i].weights) * (kept[i] ? kHigh : kLow);
    weights += double(items[i].weights);
  }
  return bits / weights;
}

double avoided(std::span<const BudgetItem> items, const std::vector<bool>& kept) {
  double cost = 0;
  for (size_t i = 0; i < items.size(); ++i) cost += kept[i] ? items[i].cost : 0.0;
  return cost;
}

double best_subset(std::span<const BudgetItem> items, double bits) {
  double best = 0;
  for (uint32_t set = 0; set < 1u << items.size(); ++set) {
    std::vector<bool> kept(items.size());
    for (size_t i = 0; i < items.size(); ++i) kept[i] = (set >> i & 1u) != 0;
    if (average_bits(items, kept) <= bits + 1e-8) best = std::max(best, avoided(items, kept));
  }
  return best;
}

TEST(Budget, NoSubsetWithinTheBudgetIsBetter) {
  Noise noise(1);
  for (int trial = 0; trial < 20; ++trial) {
    std::vector<BudgetItem> items(10);
    for (BudgetItem& item : items)
      item = {double(1 + noise.next()), 1 + int64_t(noise.bits() % 16)};
    for (const double bits : {4.5, 4.7, 5.0, 6.3, 8.4, 8.5, 16.0}) {
      const std::vector<bool> kept = plan_budget(items, bits, kLow, kHigh);
      EXPECT_LE(average_bits(items, kept), bits + 1e-8);
      EXPECT_NEAR(avoided(items, kept), best_subset(items, bits), 1e-9)
          << "trial " << trial << ", " << bits << " bits";
    }
  }
}

TEST(Budget, EndsOfTheRange) {
  const std::vector<BudgetItem> items = {{1.0, 100}, {2.0, 50}, {0.5, 7}};
  EXPECT_EQ(plan_budget(items, kLow, kLow, kHigh), std::vector<bool>({false, false, false}));
  EXPECT_EQ(plan_budget(items, kHigh, kLow, kHigh), std::vector<bool>({true, true, true}));
  EXPECT_THROW(plan_budget(items, 4.49, kLow, kHigh), Error);
}

}  // namespace
}  // namespace longspur::quant
