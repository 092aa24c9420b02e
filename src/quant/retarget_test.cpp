// Retargeted weights against the normal equations, and what they are for.
#include "quant/retarget.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "base/error.h"
#include "base/rng.h"

namespace longspur::quant {
namespace {

using Rows = std::vector<double>;  // row-major

// a^T b for a [T, n], b [T, m].
Rows cross_of(const Rows& a, int64_t n, const Rows& b, int64_t m) {
  const int64_t tokens = int64_t(a.size()) / n;
  Rows out(size_t(n * m), 0.0);
  for (int64_t t = 0; t < tokens; ++t)
    for (int64_t i = 0; i < n; ++i)
      for (int64_t j = 0; j < m; ++j)
        out[size_t(i * m + j)] += a[size_t(t * n + i)] * b[size_t(t * m + j)];
  return out;
}

struct Drift {
  static constexpr int64_t kN = 21, kK = 48, kTokens = 200;
  std::vector<float> w, gram, cross, residual;
  Rows full, drifted, lack;

  explicit Drift(float amount) {
    Noise noise(5);
    for (int64_t i = 0; i < kN * kK; ++i) w.push_back(noise.next());
    for (int64_t i = 0; i < kTokens * kK; ++i) {
      full.push_back(double(noise.next()));
      drifted.push_back(full.back() * (1 - 0.3 * double(amount)) +
                        double(amount) * double(noise.next()));
    }
    for (int64_t i = 0; i < kTokens * kN; ++i)
      lack.push_back(double(amount) * drifted[size_t(i / kN * kK + i % kN)]);
    const auto narrow = [](const Rows& rows) {
      return std::vector<float>(rows.begin(), rows.end());
    };
    gram = narrow(cross_of(drifted, kK, drifted, kK));
    cross = narrow(cross_of(full, kK, drifted, kK));
    residual = narrow(cross_of(lack, kN, drifted, kK));
  }

  WeightView view() const { return {w.data(), kN, kK}; }

  // |X V^T - (X_full W^T + R)|^2
  double error(const std::vector<float>& v, bool with_residual) const {
    double sum = 0;
    for (int64_t t = 0; t < kTokens; ++t) {
      for (int64_t row = 0; row < kN; ++row) {
        double difference = with_residual ? -lack[size_t(t * kN + row)] : 0.0;
        for (int64_t i = 0; i < kK; ++i) {
          difference += drifted[size_t(t * kK + i)] * double(v[size_t(row * kK + i)]) -
                        full[size_t(t * kK + i)] * double(w[size_t(row * kK + i)]);
        }
        sum += difference * difference;
      }
    }
    return sum;
  }
};

TEST(Retarget, LeavesWeightsWhereInputsDidNotDrift) {
  const Drift d(0.0f);
  ThreadPool pool(1);
  const std::vector<float> v = retarget(d.view(), {d.gram.data(), d.cross.data()}, pool);
  for (size_t i = 0; i < v.size(); ++i) EXPECT_NEAR(v[i], d.w[i], 1e-5);
}

TEST(Retarget, SolvesTheNormalEquations) {
  const Drift d(0.4f);
  ThreadPool pool(2);
  for (const bool with_residual : {false, true}) {
    RetargetInputs inputs{d.gram.data(), d.cross.data(),
                          with_residual ? d.residual.data() : nullptr};
    inputs.damping = 0.1;
    inputs.shrinkage = with_residual ? 0.0 : 0.3;
    const std::vector<float> v = retarget(d.view(), inputs, pool);
    double mean = 0;
    for (int64_t i = 0; i < Drift::kK; ++i)
      mean += double(d.gram[size_t(i * Drift::kK + i)]) / double(Drift::kK);
    const double trust = 1 - inputs.shrinkage;
    // (V - W)((1 - s) H + s diag(H) + d I) = (1 - s) (W (C - H) + R^T X)
    for (int64_t row = 0; row < Drift::kN; ++row) {
      for (int64_t j = 0; j < Drift::kK; ++j) {
        double left = 0,
               right = with_residual ? double(d.residual[size_t(row * Drift::kK + j)]) : 0;
        for (int64_t i = 0; i < Drift::kK; ++i) {
          const auto at = size_t(i * Drift::kK + j), own = size_t(row * Drift::kK + i);
          left +=
              (double(v[own]) - double(d.w[own])) * (double(d.gram[at]) * (i == j ? 1.0 : trust) +
                                                     (i == j ? inputs.damping * mean : 0.0));
          right += double(d.w[own]) * (double(d.cross[at]) - double(d.gram[at]));
        }
        EXPECT_NEAR(left, trust * right, 1e-3) << row << ", " << j;
      }
    }
  }
}

TEST(Retarget, BringsOutputsNearer) {
  const Drift d(0.4f);
  ThreadPool pool(1);
  RetargetInputs inputs{d.gram.data(), d.cross.data(), d.residual.data()};
  const double before = d.error(d.w, true);
  inputs.strength = 0.5;
  const double half = d.error(retarget(d.view(), inputs, pool), true);
  inputs.strength = 1.0;
  const double whole = d.error(retarget(d.view(), inputs, pool), true);
  EXPECT_LT(half, before);
  EXPECT_LT(whole, half);
  inputs.residual = nullptr;
  EXPECT_LT(d.error(retarget(d.view(), inputs, pool), false), d.error(d.w, false));
}

TEST(Retarget, RefusesASingularGram) {
  const Drift d(0.1f);
  const std::vector<float> zeros(size_t(Drift::kK * Drift::kK));
  ThreadPool pool(1);
  EXPECT_THAT(
      [&] {
        retarget(d.view(), {zeros.data(), d.cross.data()}, pool);
      },
      ::testing::ThrowsMessage<Error>(::testing::HasSubstr("not positive definite")));
}

}  // namespace
}  // namespace longspur::quant
