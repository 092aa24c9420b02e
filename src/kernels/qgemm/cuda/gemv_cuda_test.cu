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
  const GemvArgs args{dx.get(), dw.get(), bias ? db.get() : nullptr, dy.get(), t,
                      n,        k,        sizeof(Out) == 4};
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

TEST(GemvCuda, AcceptsWhatItCanDo) {
  EXPECT_TRUE(gemv_accepts(1, 64));
  EXPECT_FALSE(gemv_accepts(9, 64));
  EXPECT_FALSE(gemv_accepts(0, 64));
  EXPECT_FALSE(gemv_accepts(1, 63));
  EXPECT_NE(gemv({nullptr, nullptr, nullptr, nullptr, 9, 1, 8, true}, nullptr), nullptr);
}

}  // namespace
}  // namespace longspur::kernels::qgemm::cuda
