// Statistics of a product's inputs against sums in double.
#include "quant/calibration.h"

#include <gtest/gtest.h>

#include <cmath>

#include "base/rng.h"

namespace longspur::quant {
namespace {

Matrix random_matrix(int64_t rows, int64_t width, uint64_t seed) {
  Matrix x(rows, width);
  Noise noise(seed);
  for (float& value : x.values) value = noise.next();
  return x;
}

double direct(const Matrix& x, const Matrix& y, int64_t i, int64_t j) {
  double sum = 0;
  for (int64_t t = 0; t < x.rows; ++t) sum += double(x.row(t)[i]) * double(y.row(t)[j]);
  return sum;
}

void expect_gram(const std::vector<float>& gram, const Matrix& x, const Matrix& y) {
  const int64_t k = x.width;
  ASSERT_EQ(gram.size(), size_t(k * k));
  for (int64_t i = 0; i < k; ++i) {
    for (int64_t j = 0; j < k; ++j) {
      const double bound = 1e-5 * std::sqrt(direct(x, x, i, i) * direct(y, y, j, j)) + 1e-12;
      EXPECT_NEAR(gram[size_t(i * k + j)], direct(x, y, i, j), bound) << i << ", " << j;
    }
  }
}

TEST(Calibration, GramIsTheSumOfOuterProducts) {
  ThreadPool pool(2);
  // one token, a width that is no multiple of a panel, more tokens than a block
  for (const auto& [tokens, width] : {std::pair<int64_t, int64_t>{1, 16}, {37, 211}, {2051, 33}}) {
    const Matrix x = random_matrix(tokens, width, 1);
    InputStats stats;
    add_inputs(x, stats, pool);
    EXPECT_EQ(stats.tokens, tokens);
    expect_gram(stats.gram, x, x);
  }
}

TEST(Calibration, CrossGramTakesRowsFromTheFirstOperand) {
  ThreadPool pool(2);
  const Matrix x = random_matrix(45, 203, 2), y = random_matrix(45, 203, 3);
  std::vector<float> gram;
  add_gram(x, y, gram, pool);
  expect_gram(gram, x, y);
}

TEST(Calibration, CrossGramOfUnlikeWidths) {
  ThreadPool pool(2);
  const Matrix x = random_matrix(45, 33, 5), y = random_matrix(45, 203, 6);
  std::vector<float> gram;
  add_gram(x, y, gram, pool);
  ASSERT_EQ(gram.size(), size_t(33 * 203));
  for (const auto& [i, j] : {std::pair<int64_t, int64_t>{0, 202}, {32, 0}, {17, 191}, {5, 192}})
    EXPECT_NEAR(gram[size_t(i * 203 + j)], direct(x, y, i, j), 1e-4);
}

TEST(Calibration, BatchesAddUp) {
  ThreadPool pool(2);
  Matrix x = random_matrix(100, 48, 4);
  x.row(70)[5] = -9.0f;
  Matrix first(60, 48), second(40, 48);
  std::copy(x.row(0), x.row(60), first.values.begin());
  std::copy(x.row(60), x.row(60) + 40 * 48, second.values.begin());
  InputStats stats;
  add_inputs(first, stats, pool);
  add_inputs(second, stats, pool);
  EXPECT_EQ(stats.tokens, 100);
  expect_gram(stats.gram, x, x);
  EXPECT_EQ(stats.absmax[5], 9.0f);
  EXPECT_EQ(stats.largest(), 9.0f);
  EXPECT_EQ(stats.diagonal()[7], stats.gram[7 * 48 + 7]);
}

}  // namespace
}  // namespace longspur::quant
