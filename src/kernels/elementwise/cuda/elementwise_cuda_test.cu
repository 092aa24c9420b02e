#include <gtest/gtest.h>

#include "kernels/common/cuda/device_test.cuh"
#include "kernels/elementwise/cuda/elementwise_cuda.h"

namespace longspur::kernels::elementwise::cuda {
namespace {

using bf16 = __nv_bfloat16;
using testing::cast;
using testing::DeviceArray;
using testing::random_floats;

template <class T>
constexpr Type kType = sizeof(T) == 4 ? Type::kF32 : Type::kBF16;
template <class T>
constexpr double kTolerance = sizeof(T) == 4 ? 1e-6 : 3e-3;

template <class T>
void check_add_norm(int64_t t, int64_t c, bool with_delta) {
  const auto hidden = random_floats(size_t(t * c), 1, 3.0f);
  const auto delta = cast<T>(random_floats(size_t(t * c), 2));
  const auto weight = random_floats(size_t(c), 3);
  const DeviceArray<float> dh(hidden), dw(weight);
  const DeviceArray<T> dd(delta), dy(std::vector<T>(size_t(t * c), T(NAN)));
  AddNormArgs args{dh.get(), with_delta ? dd.get() : nullptr, dw.get(), dy.get(), 1e-5f, t, c};
  ASSERT_EQ(add_rms_norm(args, kType<T>, nullptr), nullptr);
  std::vector<double> sum(hidden.begin(), hidden.end()), expected;
  if (with_delta) {
    for (size_t i = 0; i < sum.size(); ++i) sum[i] += testing::as_float(delta[i]);
  }
  for (int64_t row = 0; row < t; ++row) {
    double squares = 0;
    for (int64_t i = 0; i < c; ++i) squares += sum[size_t(row * c + i)] * sum[size_t(row * c + i)];
    const double scale = 1.0 / std::sqrt(squares / double(c) + 1e-5);
    for (int64_t i = 0; i < c; ++i)
      expected.push_back(sum[size_t(row * c + i)] * scale * weight[size_t(i)]);
  }
  EXPECT_LE(testing::relative_error(dy.download(), expected), kTolerance<T>);
  EXPECT_LE(testing::relative_error(dh.download(), sum), 1e-6);
}

TEST(ElementwiseCuda, AddRmsNorm) {
  LONGSPUR_REQUIRE_DEVICE();
  for (const auto& [t, c] :
       {std::pair<int64_t, int64_t>{1, 5}, {3, 576}, {2, 4096}, {7, 5003}, {2, 16384}}) {
    for (bool with_delta : {false, true}) {
      check_add_norm<float>(t, c, with_delta);
      check_add_norm<bf16>(t, c, with_delta);
    }
  }
}

template <class T>
void check_swiglu(int64_t t, int64_t f) {
  const auto x = cast<T>(random_floats(size_t(t * 2 * f), 1, 4.0f));
  const DeviceArray<T> dx(x), dy(std::vector<T>(size_t(t * f), T(NAN)));
  ASSERT_EQ(swiglu({dx.get(), dy.get(), t, f}, kType<T>, nullptr), nullptr);
  std::vector<double> expected;
  for (int64_t row = 0; row < t; ++row) {
    for (int64_t i = 0; i < f; ++i) {
      const double gate = testing::as_float(x[size_t(row * 2 * f + i)]);
      expected.push_back(gate / (1.0 + std::exp(-gate)) *
                         testing::as_float(x[size_t(row * 2 * f + f + i)]));
    }
  }
  EXPECT_LE(testing::relative_error(dy.download(), expected), kTolerance<T>);
}

TEST(ElementwiseCuda, SwiGlu) {
  LONGSPUR_REQUIRE_DEVICE();
  for (const auto& [t, f] : {std::pair<int64_t, int64_t>{1, 1}, {2, 1536}, {5, 1021}}) {
    check_swiglu<float>(t, f);
    check_swiglu<bf16>(t, f);
  }
}

TEST(ElementwiseCuda, EmbedCopiesRows) {
  LONGSPUR_REQUIRE_DEVICE();
  const auto table = cast<bf16>(random_floats(11 * 77, 1));
  const std::vector<int32_t> tokens = {10, 0, 3, 3};
  const DeviceArray<bf16> dt(table);
  const DeviceArray<int32_t> di(tokens);
  const DeviceArray<float> dh(std::vector<float>(tokens.size() * 77, NAN));
  ASSERT_EQ(embed({di.get(), dt.get(), dh.get(), int64_t(tokens.size()), 77}, Type::kBF16, nullptr),
            nullptr);
  const auto hidden = dh.download();
  for (size_t t = 0; t < tokens.size(); ++t) {
    for (size_t i = 0; i < 77; ++i) {
      EXPECT_EQ(hidden[t * 77 + i], __bfloat162float(table[size_t(tokens[t]) * 77 + i]));
    }
  }
}

TEST(ElementwiseCuda, PickRowsCopiesInOrder) {
  LONGSPUR_REQUIRE_DEVICE();
  const auto x = random_floats(9 * 1021, 1);
  const std::vector<int32_t> rows = {1, 4, 4, 8};
  const DeviceArray<float> dx(x), dy(std::vector<float>(rows.size() * 1021, NAN));
  const DeviceArray<int32_t> di(rows);
  ASSERT_EQ(
      pick_rows({dx.get(), di.get(), dy.get(), int64_t(rows.size()), 1021}, Type::kF32, nullptr),
      nullptr);
  const auto y = dy.download();
  for (size_t r = 0; r < rows.size(); ++r) {
    for (size_t i = 0; i < 1021; ++i) EXPECT_EQ(y[r * 1021 + i], x[size_t(rows[r]) * 1021 + i]);
  }
}

TEST(ElementwiseCuda, RefusesRowsThatDoNotFit) {
  AddNormArgs args{};
  args.t = 1;
  args.c = kMaxNormWidth + 1;
  EXPECT_NE(add_rms_norm(args, Type::kF32, nullptr), nullptr);
}

}  // namespace
}  // namespace longspur::kernels::elementwise::cuda
