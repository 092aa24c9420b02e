#include <gtest/gtest.h>

#include "kernels/common/cuda/device_test.cuh"
#include "kernels/qgemm/cuda/gemv_cuda.h"

namespace longspur::kernels::qgemm::cuda {
namespace {

using bf16 = __nv_bfloat16;
using testing::cast;
using testing::DeviceArray;
using testing::random_floats;

// Worst relative error of the product over N x K and T tokens against double.
template <class Out>
double error_of(int64_t t, int64_t n, int64_t k, bool bias) {
  const auto x = cast<bf16>(random_floats(size_t(t * k), 1));
  const auto w = cast<bf16>(random_floats(size_t(n * k), 2, 0.1f));
  const auto b = random_floats(size_t(n), 3);
  const DeviceArray<bf16> dx(x), dw(w);
  const DeviceArray<float> db(b);
  const DeviceArray<Out> dy(std::vector<Out>(size_t(t * n), Out(NAN)));
  const GemvArgs args{dx.get(),
                      dw.get(),
                      bias ? db.get() : nullptr,
                      dy.get(),
                      t,
                      n,
                      k,
                      sizeof(Out) == 4 ? GemvResult::kF32 : GemvResult::kBF16};
  EXPECT_EQ(gemv(args, nullptr), nullptr);
  std::vector<double> expected;
  for (int64_t i = 0; i < t; ++i) {
    for (int64_t r = 0; r < n; ++r) {
      double sum = bias ? b[size_t(r)] : 0.0;
      for (int64_t j = 0; j < k; ++j) {
        sum +=
            double(__bfloat162float(x[size_t(i * k + j)])) * __bfloat162float(w[size_t(r * k + j)]);
      }
      expected.push_back(sum);
    }
  }
  return testing::relative_error(dy.download(), expected);
}

TEST(GemvCuda, MatchesDoubleAtEveryTokenCountAndOddSizes) {
  LONGSPUR_REQUIRE_DEVICE();
  for (int64_t t = 1; t <= kGemvTokens; ++t) {
    for (const auto& [n, k] :
         {std::pair<int64_t, int64_t>{1, 8}, {17, 72}, {129, 1000}, {515, 4096}}) {
      for (bool bias : {false, true}) {
        EXPECT_LE(error_of<float>(t, n, k, bias), 2e-6) << t << " " << n << " " << k;
        EXPECT_LE(error_of<bf16>(t, n, k, bias), 3e-3)
            << t << " " << n << " " << k;  // bf16's rounding
      }
    }
  }
}

TEST(GemvCuda, SwiGluMultipliesGateAndUp) {
  LONGSPUR_REQUIRE_DEVICE();
  for (int64_t t : {1, 2, 5, 8}) {
    for (const auto& [n, k] : {std::pair<int64_t, int64_t>{1, 8}, {129, 1000}, {33, 2304}}) {
      const auto x = cast<bf16>(random_floats(size_t(t * k), 1));
      const auto w = cast<bf16>(random_floats(size_t(2 * n * k), 2, 0.1f));
      const auto b = random_floats(size_t(2 * n), 3);
      const DeviceArray<bf16> dx(x), dw(w), dy(std::vector<bf16>(size_t(t * n), bf16(NAN)));
      const DeviceArray<float> db(b);
      const GemvArgs args{dx.get(), dw.get(), db.get(), dy.get(), t, n, k, GemvResult::kSwiGlu};
      ASSERT_EQ(gemv(args, nullptr), nullptr);
      const auto product = [&](int64_t i, int64_t row) {
        double sum = b[size_t(row)];
        for (int64_t j = 0; j < k; ++j)
          sum += double(__bfloat162float(x[size_t(i * k + j)])) *
                 __bfloat162float(w[size_t(row * k + j)]);
        return sum;
      };
      std::vector<double> expected;
      for (int64_t i = 0; i < t; ++i) {
        for (int64_t r = 0; r < n; ++r) {
          const double gate = product(i, r);
          expected.push_back(gate / (1.0 + std::exp(-gate)) * product(i, r + n));
        }
      }
      EXPECT_LE(testing::relative_error(dy.download(), expected), 3e-3);
    }
  }
}

// Each launch reads what the one before wrote, and they overlap: a missing wait would show.
TEST(GemvCuda, ChainsOfOverlappingLaunchesKeepTheirOrder) {
  LONGSPUR_REQUIRE_DEVICE();
  constexpr int64_t kN = 512;
  const auto start = cast<bf16>(random_floats(size_t(kN), 1));
  const DeviceArray<bf16> w(cast<bf16>(random_floats(size_t(kN * kN), 2, 0.04f)));
  const auto chain = [&](bool wait) {
    const DeviceArray<bf16> even(start), odd(start);
    for (int i = 0; i < 50; ++i) {
      const DeviceArray<bf16>&from = i % 2 == 0 ? even : odd, &to = i % 2 == 0 ? odd : even;
      EXPECT_EQ(
          gemv({from.get(), w.get(), nullptr, to.get(), 1, kN, kN, GemvResult::kBF16}, nullptr),
          nullptr);
      if (wait) testing::check(cudaDeviceSynchronize());
    }
    std::vector<float> values;
    for (const bf16 x : even.download()) values.push_back(__bfloat162float(x));
    return values;
  };
  const auto expected = chain(true);
  for (int run = 0; run < 20; ++run) ASSERT_EQ(chain(false), expected) << run;
}

TEST(GemvCuda, AcceptsWhatItCanDo) {
  EXPECT_TRUE(gemv_accepts(1, 64));
  EXPECT_FALSE(gemv_accepts(9, 64));
  EXPECT_FALSE(gemv_accepts(0, 64));
  EXPECT_FALSE(gemv_accepts(1, 63));
  EXPECT_NE(gemv({nullptr, nullptr, nullptr, nullptr, 9, 1, 8, GemvResult::kF32}, nullptr),
            nullptr);
}

}  // namespace
}  // namespace longspur::kernels::qgemm::cuda
