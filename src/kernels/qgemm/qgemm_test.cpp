// Every type, instruction set and input stage against the double reference. Tolerances are argued
// in docs/numerics.md, section qgemm.
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <utility>

#include "base/error.h"
#include "kernels/qgemm/api.h"
#include "kernels/qgemm/isa.h"
#include "kernels/qgemm/qgemm_cases.h"
#include "kernels/qgemm/ref.h"

namespace longspur::kernels::qgemm {
namespace {

struct Problem {
  Shape shape;
  DType dtype;
  Input input;
  ActPrecision precision;
  std::vector<std::byte> stored;
  std::vector<float> x, norm, bias;

  Problem(Shape s, DType type, Input in, ActPrecision p, int64_t first_row = 0)
      : shape(s), dtype(type), input(in), precision(p) {
    stored = make_weights(type, s.n, s.k, 11);
    x = make_input(s.t, columns(), first_row, 12);
    norm = make_input(1, s.k, 0, 13);
    bias = make_input(1, s.n, 0, 14);
  }
  int64_t columns() const { return input == Input::kSwiGlu ? 2 * shape.k : shape.k; }
  WeightRows rows() const { return {dtype, stored.data(), shape.n, shape.k}; }
  MatmulArgs args(float* y) const {
    MatmulArgs a;
    a.x = x.data();
    a.t = shape.t;
    a.ldx = columns();
    a.input = input;
    a.norm_weight = norm.data();
    a.eps = 1e-5f;
    a.y = y;
    a.ldy = shape.n;
    a.precision = precision;
    return a;
  }
  std::string name() const {
    return concat(active_isa(), " ", dtype_info(dtype).name, " input ", int(input), " precision ",
                  int(precision), " T ", shape.t, " N ", shape.n, " K ", shape.k);
  }
};

void multiply(ThreadPool& pool, const PackedWeight& w, const MatmulArgs& args) {
  validate(w, args);
  matmul(pool, w, args);
}

std::unique_ptr<PackedWeight> pack_one(const WeightRows& rows, ThreadPool& pool) {
  return pack(std::span(&rows, 1), pool);
}

std::vector<float> run(const Problem& problem, int threads) {
  ThreadPool pool(threads);
  const auto w = pack_one(problem.rows(), pool);
  std::vector<float> y(size_t(problem.shape.t * problem.shape.n), -777.0f);
  multiply(pool, *w, problem.args(y.data()));
  return y;
}

// |found - expected| <= bound for each element of y.
struct Expected {
  std::vector<double> value, bound;
};

void expect_within(const std::vector<float>& y, const Expected& expected, const std::string& what) {
  for (size_t i = 0; i < y.size(); ++i) {
    ASSERT_LE(std::abs(double(y[i]) - expected.value[i]), expected.bound[i])
        << what << ": element " << i << " is " << y[i] << ", expected " << expected.value[i];
  }
}

// Sums of products in double; the bound is `relative` times the sum of magnitudes plus the sum of
// |w| * slack, slack being an error of x.
Expected products(const ref::Weights& w,
                  const std::vector<double>& x,
                  const std::vector<double>* slack,
                  double relative) {
  Expected out;
  const int64_t tokens = int64_t(x.size()) / w.k;
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t n = 0; n < w.n; ++n) {
      double sum = 0, magnitude = 0, error = 0;
      for (int64_t i = 0; i < w.k; ++i) {
        const auto wi = size_t(n * w.k + i), xi = size_t(t * w.k + i);
        sum += w.value[wi] * x[xi];
        magnitude += w.magnitude[wi] * std::abs(x[xi]);
        if (slack != nullptr) error += w.magnitude[wi] * (*slack)[xi];
      }
      out.value.push_back(sum);
      out.bound.push_back(relative * magnitude + error + 1e-30);
    }
  }
  return out;
}

class EveryIsa : public ::testing::TestWithParam<std::string_view> {
 protected:
  void SetUp() override {
    before_ = active_isa();
    limit_isa(GetParam());
  }
  void TearDown() override { limit_isa(before_); }
  std::string_view before_;
};

constexpr ActPrecision kPrecisions[] = {ActPrecision::kInt8Peak, ActPrecision::kInt15};

bool quantised(DType dtype) { return dtype_info(dtype).block != 1; }

std::vector<std::pair<DType, ActPrecision>> types_and_precisions() {
  std::vector<std::pair<DType, ActPrecision>> all;
  for (const DType dtype : kTypes) all.emplace_back(dtype, ActPrecision::kInt8Peak);
  all.emplace_back(DType::kNVFP4, ActPrecision::kInt15);
  all.emplace_back(DType::kNVFP4, ActPrecision::kNvfp4);
  return all;
}

// With the codes of x given, only fp32 rounding is left: the integer path is exact.
TEST_P(EveryIsa, QuantisedProductsEqualProductsOfTheCodes) {
  for (const DType dtype : kTypes) {
    if (!quantised(dtype)) continue;
    for (const Shape& shape : shapes(dtype)) {
      for (const ActPrecision precision : kPrecisions) {
        const Problem problem(shape, dtype, Input::kPlain, precision, shape.t);
        const ref::Weights w = ref::dequantize(problem.rows());
        const std::vector<double> x(problem.x.begin(), problem.x.end());
        const ref::Codes codes = ref::quantize(x, precision);
        expect_within(run(problem, 1), products(w, codes.value, nullptr, 1e-5), problem.name());
      }
    }
  }
}

TEST_P(EveryIsa, AllInputsStayWithinTheQuantisationError) {
  for (const DType dtype : kTypes) {
    for (const Shape& shape : shapes(dtype)) {
      for (const Input input : {Input::kPlain, Input::kRmsNorm, Input::kSwiGlu}) {
        for (const ActPrecision precision : kPrecisions) {
          if (!quantised(dtype) && precision != ActPrecision::kInt8Peak) continue;
          const Problem problem(shape, dtype, input, precision, 2);
          const ref::Weights w = ref::dequantize(problem.rows());
          float unused = 0;
          const std::vector<double> x = ref::transform(problem.args(&unused), shape.k);
          const double rounding = 1e-5 + double(shape.k) * 0x1p-24;
          if (!quantised(dtype)) {
            expect_within(run(problem, 2), products(w, x, nullptr, rounding), problem.name());
            continue;
          }
          std::vector<double> slack = ref::quantize(x, precision).scale;
          for (double& s : slack) s *= 0.502;  // half a step, and fp32's error of the transform
          for (double& s : slack) s += 1e-30;  // blocks below the smallest scale become zero
          expect_within(run(problem, 2), products(w, x, &slack, rounding), problem.name());
        }
      }
    }
  }
}

// The error must look like rounding, not like the worst case that the bound above allows.
TEST_P(EveryIsa, QuantisationErrorIsThatOfUniformRounding) {
  const Shape shape{16, 64, 576};
  for (const ActPrecision precision : kPrecisions) {
    const Problem problem(shape, DType::kQ4_1, Input::kRmsNorm, precision, 7);
    Problem ordinary = problem;
    ordinary.x.clear();
    for (int64_t t = 0; t < shape.t; ++t) {
      const std::vector<float> row = make_input(1, shape.k, 0, 100 + uint64_t(t));
      ordinary.x.insert(ordinary.x.end(), row.begin(), row.end());
    }
    const ref::Weights w = ref::dequantize(ordinary.rows());
    float unused = 0;
    const std::vector<double> x = ref::transform(ordinary.args(&unused), shape.k);
    const std::vector<double> scale = ref::quantize(x, precision).scale;
    const std::vector<float> y = run(ordinary, 1);
    double found = 0, predicted = 0;
    for (int64_t t = 0; t < shape.t; ++t) {
      for (int64_t n = 0; n < shape.n; ++n) {
        if (n % 9 == 5) continue;  // rows of huge scale would hide the others
        double sum = 0;
        for (int64_t i = 0; i < shape.k; ++i) {
          const double wi = w.value[size_t(n * shape.k + i)];
          const auto xi = size_t(t * shape.k + i);
          sum += wi * x[xi];
          predicted += wi * wi * scale[xi] * scale[xi] / 12;
        }
        const double error = double(y[size_t(t * shape.n + n)]) - sum;
        found += error * error;
      }
    }
    EXPECT_LT(found, 1.3 * predicted) << ordinary.name();
    EXPECT_GT(found, 0.7 * predicted) << ordinary.name();
  }
}

// An outlier costs its own part of four the fine steps, and nobody else anything.
TEST_P(EveryIsa, AnOutlierLeavesTheRestOfItsBlockPrecise) {
  const Shape shape{1, 32, 64};
  Problem problem(shape, DType::kQ4_1, Input::kPlain, ActPrecision::kInt8Peak);
  const ref::Weights w = ref::dequantize(problem.rows());
  const auto error = [&] {
    const std::vector<double> x(problem.x.begin(), problem.x.end());
    const Expected exact = products(w, x, nullptr, 0.0);
    const std::vector<float> y = run(problem, 1);
    double squares = 0;
    for (size_t n = 0; n < y.size(); ++n)
      if (n % 9 != 5) squares += std::pow(double(y[n]) - exact.value[n], 2);
    return std::sqrt(squares);
  };
  const double ordinary = error();
  for (const size_t at : {0, 21, 63}) {
    const float before = std::exchange(problem.x[at], 100.0f);
    EXPECT_LT(error(), 1.5 * ordinary) << "outlier at " << at;
    problem.x[at] = before;
  }
}

// A token's row is the same in any company and for any number of threads.
TEST_P(EveryIsa, RowsDoNotDependOnTokensOrThreads) {
  const int64_t k = 192;
  for (const auto& [dtype, precision] : types_and_precisions()) {
    const Problem all({64, 83, k}, dtype, Input::kRmsNorm, precision);
    const std::vector<float> y = run(all, 1);
    EXPECT_EQ(y, run(all, 2)) << all.name();
    EXPECT_EQ(y, run(all, 5)) << all.name();
    for (const int64_t t : {0, 5, 37, 63}) {
      Problem one = all;
      one.shape.t = 1;
      one.x.assign(all.x.begin() + t * k, all.x.begin() + (t + 1) * k);
      const std::vector<float> row(y.begin() + t * 83, y.begin() + (t + 1) * 83);
      EXPECT_EQ(run(one, 1), row) << all.name();
      EXPECT_EQ(run(one, 3), row) << all.name();
    }
  }
}

TEST_P(EveryIsa, AccumulatesAndAddsBiasWithinStrides) {
  for (const auto& [dtype, precision] : types_and_precisions()) {
    for (const int64_t t : {1, 19}) {
      const Problem problem({t, 35, 64}, dtype, Input::kPlain, precision);
      const std::vector<float> plain = run(problem, 2);
      ThreadPool pool(2);
      const auto w = pack_one(problem.rows(), pool);
      const int64_t ldy = 41;
      std::vector<float> y(size_t(t * ldy), 0.5f);
      MatmulArgs args = problem.args(y.data());
      args.ldy = ldy;
      args.accumulate = true;
      args.bias = problem.bias.data();
      multiply(pool, *w, args);
      for (int64_t i = 0; i < t * ldy; ++i) {
        const int64_t token = i / ldy, n = i % ldy;
        if (n >= 35) {
          ASSERT_EQ(y[size_t(i)], 0.5f) << "written outside of the row";
          continue;
        }
        const float sum = plain[size_t(token * 35 + n)];
        const float expected = 0.5f + (sum + problem.bias[size_t(n)]);
        ASSERT_NEAR(y[size_t(i)], expected, 2e-7f * (1 + std::abs(sum))) << problem.name();
      }
    }
  }
}

TEST_P(EveryIsa, NanAndInfinityReachTheirRowOnly) {
  for (const auto& [dtype, precision] : types_and_precisions()) {
    Problem problem({18, 16, 64}, dtype, Input::kPlain, precision);
    problem.x[64 * 3 + 40] = std::numeric_limits<float>::quiet_NaN();
    problem.x[64 * 17 + 1] = std::numeric_limits<float>::infinity();
    const std::vector<float> y = run(problem, 1);
    for (int64_t i = 0; i < 18 * 16; ++i) {
      if (i % 16 == 3) continue;  // a row of zero weights
      const bool bad = i / 16 == 3 || i / 16 == 17;
      EXPECT_EQ(std::isfinite(y[size_t(i)]), !bad) << problem.name() << " element " << i;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Qgemm,
                         EveryIsa,
                         ::testing::ValuesIn(available_isas()),
                         [](const auto& info) { return std::string(info.param); });

// Stored data may lie anywhere; matrices stacked along N pack as one.
TEST(Pack, DequantisesExactlyFromUnalignedAndStackedMatrices) {
  ThreadPool pool(2);
  for (const DType dtype : kTypes) {
    const int64_t k = dtype == DType::kNVFP4 ? 128 : 96;
    std::vector<std::vector<std::byte>> stored;
    std::vector<WeightRows> parts;
    std::vector<double> expected;
    for (const int64_t n : {5, 1, 30}) {
      std::vector<std::byte> bytes = make_weights(dtype, n, k, uint64_t(n));
      bytes.insert(bytes.begin(), std::byte{0});
      stored.push_back(std::move(bytes));
      const float scale = dtype == DType::kNVFP4 ? 0.37f * float(n) : 1.0f;
      parts.push_back({dtype, stored.back().data() + 1, n, k, scale});
      const ref::Weights w = ref::dequantize(parts.back());
      expected.insert(expected.end(), w.value.begin(), w.value.end());
    }
    const auto packed = pack(parts, pool);
    EXPECT_EQ(packed->n(), 36);
    EXPECT_EQ(packed->k(), k);
    EXPECT_EQ(packed->dtype(), dtype);
    std::vector<float> row(static_cast<size_t>(k));
    for (int64_t n = 0; n < 36; ++n) {
      packed->dequantize_row(n, row.data());
      for (int64_t i = 0; i < k; ++i)
        ASSERT_EQ(row[size_t(i)], float(expected[size_t(n * k + i)]))
            << dtype_info(dtype).name << " row " << n << " element " << i;
    }
  }
}

TEST(Pack, RefusesWhatItCannotPack) {
  ThreadPool pool(1);
  const std::vector<std::byte> bytes(4096);
  const WeightRows good{DType::kQ4_1, bytes.data(), 2, 64};
  const WeightRows other{DType::kQ8_0, bytes.data(), 2, 64};
  const WeightRows longer{DType::kQ4_1, bytes.data(), 2, 96};
  const WeightRows odd{DType::kQ4_1, bytes.data(), 2, 40};
  const WeightRows empty{DType::kQ4_1, bytes.data(), 0, 64};
  const WeightRows unknown{DType::kQ6_K, bytes.data(), 1, 256};
  EXPECT_THROW(pack({}, pool), Error);
  EXPECT_THROW(pack(std::vector{good, other}, pool), Error);
  EXPECT_THROW(pack(std::vector{good, longer}, pool), Error);
  EXPECT_THROW(pack(std::vector{odd}, pool), Error);
  EXPECT_THROW(pack(std::vector{empty}, pool), Error);
  EXPECT_THROW(pack(std::vector{unknown}, pool), UnsupportedError);
  const WeightRows scaled{DType::kQ4_1, bytes.data(), 2, 64, 0.5f};
  const WeightRows half_block{DType::kNVFP4, bytes.data(), 2, 96};
  const WeightRows endless{DType::kNVFP4, bytes.data(), 2, 64, INFINITY};
  EXPECT_THROW(pack(std::vector{scaled}, pool), Error);
  EXPECT_THROW(pack(std::vector{half_block}, pool), Error);
  EXPECT_THROW(pack(std::vector{endless}, pool), Error);
  EXPECT_TRUE(supports(DType::kNVFP4, 64));
  EXPECT_FALSE(supports(DType::kNVFP4, 32));
  EXPECT_TRUE(supports(DType::kQ4_0, 64));
  EXPECT_FALSE(supports(DType::kQ4_0, 48));
  EXPECT_TRUE(supports(DType::kBF16, 7));
  EXPECT_FALSE(supports(DType::kQ6_K, 256));
}

TEST(Matmul, ValidateNamesWhatIsWrong) {
  const Problem problem({2, 16, 32}, DType::kQ4_1, Input::kSwiGlu, ActPrecision::kInt8Peak);
  ThreadPool pool(1);
  const auto w = pack_one(problem.rows(), pool);
  float y = 0;
  const MatmulArgs good = problem.args(&y);
  EXPECT_NO_THROW(validate(*w, good));
  MatmulArgs bad = good;
  bad.t = 0;
  EXPECT_THROW(validate(*w, bad), Error);
  bad = good;
  bad.ldx = 63;
  EXPECT_THROW(validate(*w, bad), Error);
  bad = good;
  bad.ldy = 15;
  EXPECT_THROW(validate(*w, bad), Error);
  bad = good;
  bad.y = nullptr;
  EXPECT_THROW(validate(*w, bad), Error);
  bad = good;
  bad.input = Input::kRmsNorm;
  bad.norm_weight = nullptr;
  EXPECT_THROW(validate(*w, bad), Error);
}

TEST(Isa, UnknownNameIsRefusedAndTheLastIsScalar) {
  EXPECT_THROW(limit_isa("mmx"), Error);
  EXPECT_EQ(available_isas().back(), "scalar");
}

}  // namespace
}  // namespace longspur::kernels::qgemm
