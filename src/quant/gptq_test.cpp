// GPTQ against a slow version in double, row by row.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

#include "kernels/nvfp4/codec.h"
#include "quant/cholesky.h"
#include "quant/lanes.h"
#include "quant/matrix.h"
#include "quant/matrix_cases.h"

namespace longspur::quant {
namespace {

namespace nvfp4 = kernels::nvfp4;
using testing::Case;
using testing::gptq;
using testing::make_case;
using testing::run;

// ---- GPTQ in double, one row at a time ----

std::vector<double> inverse_of(std::vector<double> a, int64_t k) {
  std::vector<double> b(size_t(k * k), 0.0);
  for (int64_t i = 0; i < k; ++i) b[size_t(i * k + i)] = 1.0;
  for (int64_t p = 0; p < k; ++p) {
    const double pivot = a[size_t(p * k + p)];
    for (int64_t j = 0; j < k; ++j) {
      a[size_t(p * k + j)] /= pivot;
      b[size_t(p * k + j)] /= pivot;
    }
    for (int64_t i = 0; i < k; ++i) {
      const double factor = a[size_t(i * k + p)];
      for (int64_t j = 0; j < k && i != p; ++j) {
        a[size_t(i * k + j)] -= factor * a[size_t(p * k + j)];
        b[size_t(i * k + j)] -= factor * b[size_t(p * k + j)];
      }
    }
  }
  return b;
}

// U with A = U^T U, row by row.
std::vector<double> upper_factor(std::vector<double> a, int64_t k) {
  for (int64_t i = 0; i < k; ++i) {
    const double pivot = std::sqrt(a[size_t(i * k + i)]);
    for (int64_t j = 0; j < k; ++j) a[size_t(i * k + j)] = j < i ? 0 : a[size_t(i * k + j)] / pivot;
    for (int64_t r = i + 1; r < k; ++r)
      for (int64_t j = r; j < k; ++j)
        a[size_t(r * k + j)] -= a[size_t(i * k + r)] * a[size_t(i * k + j)];
  }
  return a;
}

class SlowGptq {
 public:
  SlowGptq(const Case& c, const MatrixMethod& method, const std::vector<int32_t>& order)
      : c_(c), method_(method), order_(order) {
    double mean = 0;
    for (int64_t i = 0; i < c.k; ++i) mean += double(c.gram[size_t(i * c.k + i)]) / double(c.k);
    std::vector<double> h;
    for (int64_t i = 0; i < c.k; ++i) {
      for (int64_t j = 0; j < c.k; ++j) {
        h.push_back(double(c.gram[size_t(column(i) * c.k + column(j))]) +
                    (i == j ? method.damping * mean : 0.0));
      }
    }
    u_ = upper_factor(inverse_of(h, c.k), c.k);
    const float top = nvfp4::scale_top(method.recipe);
    enc_ = top / c.amax();
    multiplier_ = nvfp4::tensor_scale(c.amax(), method.recipe);
  }

  // given: the scales of the row's blocks for act-order, else null
  void row(int64_t index, const uint8_t* given, std::vector<uint8_t>& codes) {
    std::vector<double> w;
    for (int64_t i = 0; i < c_.k; ++i) w.push_back(double(c_.w[size_t(index * c_.k + column(i))]));
    codes.assign(size_t(c_.k), 0);
    uint8_t scale = 0;
    for (int64_t i = 0; i < c_.k; ++i) {
      if (given != nullptr) {
        scale = given[column(i) / kBlock];
      } else if (i % kBlock == 0) {
        scale = choose(w, i);
      }
      const uint8_t code = encode(w[size_t(i)], scale);
      codes[size_t(column(i))] = code;
      feed_back(w, i, c_.k, (w[size_t(i)] - decode(code, scale)) / u_[size_t(i * c_.k + i)]);
    }
  }

  // The least loss over all ways to choose the groups' scales among their candidates.
  double least_loss(int64_t index) const {
    std::vector<double> w;
    for (int64_t i = 0; i < c_.k; ++i) w.push_back(double(c_.w[size_t(index * c_.k + i)]));
    return least_from(w, 0);
  }

 private:
  double least_from(const std::vector<double>& w, int64_t k) const {
    if (k == c_.k) return 0;
    double least = std::numeric_limits<double>::infinity();
    for (int c = 0; c < candidate_count(method_.recipe.rule); ++c) {
      const uint8_t scale = candidate_code(method_.recipe.rule, c, largest(w, k), enc_);
      std::vector<double> after = w;
      double loss = 0;
      for (int64_t i = k; i < k + kBlock; ++i) {
        const double value = after[size_t(i)];
        const double error =
            (value - decode(encode(value, scale), scale)) / u_[size_t(i * c_.k + i)];
        loss += error * error;
        feed_back(after, i, c_.k, error);
      }
      least = std::min(least, loss + least_from(after, k + kBlock));
    }
    return least;
  }

  static float largest(const std::vector<double>& w, int64_t k) {
    float bmax = 0;
    for (int64_t i = k; i < k + kBlock; ++i) bmax = std::max(bmax, std::fabs(float(w[size_t(i)])));
    return bmax;
  }

  int64_t column(int64_t i) const { return order_.empty() ? i : int64_t(order_[size_t(i)]); }
  uint8_t encode(double w, uint8_t scale) const {
    const float step = 1.0f / enc_ * nvfp4::e4m3_decode(scale);
    return nvfp4::e2m1_encode(step == 0 ? 0.0f : float(w * double(1.0f / step)));
  }
  double decode(uint8_t code, uint8_t scale) const {
    return double(nvfp4::e2m1_decode(code)) * double(nvfp4::e4m3_decode(scale)) *
           double(multiplier_);
  }
  void feed_back(std::vector<double>& w, int64_t i, int64_t end, double error) const {
    for (int64_t j = i + 1; j < end; ++j) w[size_t(j)] -= error * u_[size_t(i * c_.k + j)];
  }

  double loss_of(std::vector<double> w, int64_t k, uint8_t scale) const {
    double loss = 0;
    for (int64_t i = k; i < k + kBlock; ++i) {
      const double difference = w[size_t(i)] - decode(encode(w[size_t(i)], scale), scale);
      if (method_.choice == ScaleChoice::kSimulated) {
        const double error = difference / u_[size_t(i * c_.k + i)];
        loss += error * error;
        feed_back(w, i, k + kBlock, error);
      } else {
        loss += difference * difference;
      }
    }
    return loss;
  }

  uint8_t choose(const std::vector<double>& w, int64_t k) const {
    const float bmax = largest(w, k);
    uint8_t best = 0;
    double best_loss = std::numeric_limits<double>::infinity();
    for (int c = 0; c < candidate_count(method_.recipe.rule); ++c) {
      const uint8_t scale = candidate_code(method_.recipe.rule, c, bmax, enc_);
      const double found = loss_of(w, k, scale);
      if (found < best_loss) {
        best = scale;
        best_loss = found;
      }
    }
    return best;
  }

  const Case& c_;
  const MatrixMethod& method_;
  std::vector<int32_t> order_;
  std::vector<double> u_;
  float enc_ = 0, multiplier_ = 0;
};

void expect_equals_slow(const Case& c, const MatrixMethod& method) {
  ThreadPool pool(1);
  const Curvature curvature(c.calibration(), method, pool);
  const QuantizedMatrix found = quantize_matrix(c.view(), c.amax(), &curvature, method, pool);
  SlowGptq slow(c, method, curvature.order());
  std::vector<uint8_t> codes;
  for (int64_t row = 0; row < c.n; ++row) {
    const uint8_t* scales = found.scales.data() + row * (c.k / kBlock);
    slow.row(row, method.act_order ? scales : nullptr, codes);
    for (int64_t i = 0; i < c.k; ++i) {
      const int code = found.codes[size_t((row * c.k + i) / 2)] >> (i % 2 * 4) & 15;
      ASSERT_EQ(code, int(codes[size_t(i)])) << "row " << row << ", column " << i;
    }
  }
}

TEST(Gptq, EqualsTheSlowVersionOnEveryRow) {
  const Case c = make_case(96, 128, 512, 11);
  using nvfp4::Rule;
  for (const Rule rule :
       {Rule::kStatic6, Rule::kStatic4, Rule::kFourOverSix, Rule::kSweep, Rule::kFullSweep}) {
    for (const ScaleChoice choice : {ScaleChoice::kGroupStart, ScaleChoice::kSimulated}) {
      SCOPED_TRACE(std::string(nvfp4::rule_name(rule)) +
                   (choice == ScaleChoice::kSimulated ? ", simulated" : ", at the group's start"));
      expect_equals_slow(c, gptq(rule, choice));
    }
    MatrixMethod ordered = gptq(rule);
    ordered.act_order = true;
    SCOPED_TRACE(std::string(nvfp4::rule_name(rule)) + ", by falling diagonal");
    expect_equals_slow(c, ordered);
  }
}

TEST(Gptq, ABeamAsWideAsTheCandidatesFindsTheBestScales) {
  const Case c = make_case(20, 48, 200, 29);
  ThreadPool pool(1);
  for (const nvfp4::Rule rule : {nvfp4::Rule::kFourOverSix, nvfp4::Rule::kSweep}) {
    MatrixMethod method = gptq(rule);
    method.beam = rule == nvfp4::Rule::kSweep ? 16 : 4;
    const QuantizedMatrix q = run(c, method);
    const std::vector<float> h = Curvature(c.calibration(), method, pool).gram();
    const SlowGptq slow(c, method, {});
    for (int64_t row = 0; row < c.n; ++row) {
      const double least = slow.least_loss(row), found = testing::row_loss(c, q, h, row);
      // five candidates in three groups: 25 versions enter the last one, 16 are kept
      if (rule == nvfp4::Rule::kFourOverSix) {
        EXPECT_NEAR(found, least, 1e-4 * least) << "row " << row;
      } else {
        EXPECT_LE(found, 1.1 * least) << "row " << row;
      }
    }
  }
}

TEST(Gptq, ABeamOfOneCandidateIsGptq) {
  const Case c = make_case(37, 64, 200, 30);
  MatrixMethod method = gptq(nvfp4::Rule::kStatic6);
  const QuantizedMatrix plain = run(c, method);
  for (const int beam : {2, 8, 16}) {
    method.beam = beam;
    EXPECT_EQ(run(c, method).codes, plain.codes) << beam;
  }
}

TEST(Gptq, AWiderBeamLosesLess) {
  const Case c = make_case(48, 160, 500, 31);
  MatrixMethod method = gptq(nvfp4::Rule::kFullSweep);
  double last = testing::loss(c, run(c, method), c.gram);
  for (const int beam : {4, 16}) {
    method.beam = beam;
    const double now = testing::loss(c, run(c, method), c.gram);
    EXPECT_LT(now, last) << beam;
    last = now;
  }
}

TEST(Gptq, ActOrderTakesTheScalesFromTheOriginalWeights) {
  const Case c = make_case(32, 64, 256, 12);
  MatrixMethod method = gptq(nvfp4::Rule::kSweep);
  method.act_order = true;
  MatrixMethod rounding;
  rounding.recipe = method.recipe;
  rounding.weighted = true;
  EXPECT_EQ(run(c, method).scales, run(c, rounding).scales);
}

TEST(Gptq, RoundsToTheNearestWhereInputsAreIndependent) {
  Case c = make_case(16, 48, 64, 13);
  for (int64_t i = 0; i < c.k; ++i)
    for (int64_t j = 0; j < c.k; ++j) c.gram[size_t(i * c.k + j)] = i == j ? 2.0f : 0.0f;
  for (const auto rule : {nvfp4::Rule::kStatic6, nvfp4::Rule::kFourOverSix, nvfp4::Rule::kSweep}) {
    MatrixMethod rounding;
    rounding.recipe.rule = rule;
    const QuantizedMatrix plain = run(c, rounding), fed = run(c, gptq(rule));
    EXPECT_EQ(plain.codes, fed.codes);
    EXPECT_EQ(plain.scales, fed.scales);
  }
}

TEST(InverseFactor, TimesItselfIsTheInverse) {
  for (const int64_t k : {1, 16, 65, 200}) {
    const Case c = make_case(1, k, 4 * k + 9, 27);
    ThreadPool pool(2);
    const std::vector<float> u = inverse_factor(c.gram, k, {}, pool);
    ASSERT_EQ(u.size(), size_t(k * k));
    // U H U^T = identity
    for (int64_t i = 0; i < k; ++i) {
      for (int64_t j = 0; j < k; j += 7) {
        double sum = 0;
        for (int64_t a = i; a < k; ++a)
          for (int64_t b = j; b < k; ++b)
            sum += double(u[size_t(i * k + a)]) * double(c.gram[size_t(a * k + b)]) *
                   double(u[size_t(j * k + b)]);
        EXPECT_NEAR(sum, i == j ? 1.0 : 0.0, 1e-4) << k << ": " << i << ", " << j;
      }
    }
  }
}

}  // namespace
}  // namespace longspur::quant
