// What is particular to NVFP4 weights and activations, on every instruction set; the laws that all
// types share are in qgemm_test.cpp.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "base/error.h"
#include "base/shape.h"
#include "kernels/nvfp4/codec.h"
#include "kernels/qgemm/api.h"
#include "kernels/qgemm/isa.h"
#include "kernels/qgemm/qgemm_cases.h"
#include "kernels/qgemm/ref.h"

namespace longspur::kernels::qgemm {
namespace {

using nvfp4::Rule;

constexpr Rule kRules[] = {Rule::kStatic6, Rule::kFourOverSix, Rule::kSweep};

struct Call {
  ActPrecision precision = ActPrecision::kNvfp4;
  Rule rule = Rule::kFourOverSix;
  Input input = Input::kPlain;
};

// y of x [T, columns] and the parts stacked, by one thread.
std::vector<float> multiply(const std::vector<WeightRows>& parts,
                            const std::vector<float>& x,
                            const Call& call) {
  ThreadPool pool(1);
  const auto w = pack(parts, pool);
  const std::vector<float> norm = make_input(1, w->k(), 0, 13);
  MatmulArgs args;
  args.x = x.data();
  args.ldx = call.input == Input::kSwiGlu ? 2 * w->k() : w->k();
  args.t = int64_t(x.size()) / args.ldx;
  args.input = call.input;
  args.norm_weight = norm.data();
  args.eps = 1e-5f;
  std::vector<float> y(size_t(args.t * w->n()));
  args.y = y.data();
  args.ldy = w->n();
  args.precision = call.precision;
  args.act_rule = call.rule;
  validate(*w, args);
  matmul(pool, *w, args);
  return y;
}

class Nvfp4OnEveryIsa : public ::testing::TestWithParam<std::string_view> {
 protected:
  void SetUp() override {
    before_ = active_isa();
    limit_isa(GetParam());
  }
  void TearDown() override { limit_isa(before_); }
  std::string_view before_;
};

// Only the fp32 accumulation of block sums rounds.
TEST_P(Nvfp4OnEveryIsa, FourBitProductsEqualProductsOfTheCodes) {
  for (const Shape& shape : shapes(DType::kNVFP4)) {
    for (const Rule rule : kRules) {
      const std::vector<std::byte> stored = make_nvfp4(shape.n, shape.k, 3);
      const WeightRows rows{DType::kNVFP4, stored.data(), shape.n, shape.k, 0.01f};
      const std::vector<float> x = make_input(shape.t, shape.k, shape.t, 4);
      const std::vector<float> y = multiply({rows}, x, {.rule = rule});
      const ref::Weights w = ref::dequantize(rows);
      const std::vector<double> codes = ref::quantize_nvfp4(x, shape.k, rule);
      for (int64_t i = 0; i < shape.t * shape.n; ++i) {
        double sum = 0, magnitude = 0;
        for (int64_t k = 0; k < shape.k; ++k) {
          const double term =
              w.value[size_t(i % shape.n * shape.k + k)] * codes[size_t(i / shape.n * shape.k + k)];
          sum += term;
          magnitude += std::abs(term);
        }
        ASSERT_LE(std::abs(double(y[size_t(i)]) - sum), 1e-6 * magnitude + 1e-37)
            << "T " << shape.t << " N " << shape.n << " K " << shape.k << " element " << i;
      }
    }
  }
}

// The codes are those of the fp32 row that the input stage makes, which an fp32 product with the
// identity shows.
TEST_P(Nvfp4OnEveryIsa, FusedInputsAreQuantisedAsTheirFp32Rows) {
  const int64_t k = 128, n = 35, t = 19;
  const std::vector<std::byte> stored = make_nvfp4(n, k, 5);
  const WeightRows rows{DType::kNVFP4, stored.data(), n, k, 0.25f};
  std::vector<float> identity(size_t(k * k));
  for (int64_t i = 0; i < k; ++i) identity[size_t(i * k + i)] = 1.0f;
  const WeightRows same{DType::kF32, reinterpret_cast<const std::byte*>(identity.data()), k, k};
  for (const Input input : {Input::kRmsNorm, Input::kSwiGlu}) {
    const int64_t columns = input == Input::kSwiGlu ? 2 * k : k;
    const std::vector<float> x = make_input(t, columns, 4, 6);
    const std::vector<float> transformed = multiply({same}, x, {.input = input});
    for (const Rule rule : kRules)
      EXPECT_EQ(multiply({rows}, x, {.rule = rule, .input = input}),
                multiply({rows}, transformed, {.rule = rule}));
  }
}

// An activation row whose multiplier is 1 and whose blocks are exact in the format, and a row of
// weights for each block scale. Block 0 carries the largest value and meets weights of scale zero,
// so that y is the sum of block 1 alone.
struct ExactBlocks {
  static constexpr int64_t kRows = 0x7f;
  std::vector<float> x = std::vector<float>(64, 0.0f);
  std::vector<std::byte> stored = std::vector<std::byte>(kRows * 36);
  std::vector<double> expected = std::vector<double>(kRows, 0.0);

  ExactBlocks(Noise& noise, float top, uint8_t x_scale) {
    x[0] = top;
    for (size_t i = 0; i < 16; ++i) {
      const uint32_t code = i == 3 ? 7u : noise.bits() % 16u;
      x[16 + i] = nvfp4::e2m1_decode(code) * nvfp4::e4m3_decode(x_scale);
    }
    for (size_t row = 0; row < kRows; ++row) {
      std::byte* block = stored.data() + row * 36;
      block[1] = std::byte(row);
      for (size_t i = 0; i < 16; ++i) {
        // Some rows have the largest sum there is: 6 with the sign of x.
        const uint32_t largest = x[16 + i] < 0 ? 15u : 7u;
        const uint32_t code = row % 8 == 6 ? largest : noise.bits() % 16u;
        block[4 + 8 + i % 8] |= std::byte(code << (i / 8 * 4));
        expected[row] += double(x[16 + i]) * double(nvfp4::e2m1_decode(code)) *
                         double(nvfp4::e4m3_decode(uint32_t(row)));
      }
    }
  }
};

TEST_P(Nvfp4OnEveryIsa, SumsOfABlockAreExact) {
  Noise noise(17);
  for (const Rule rule : kRules) {
    const float top = nvfp4::scale_top({.rule = rule});
    for (const int code : {1, 3, 7, 8, 0x0f, 0x31, 0x38, 0x47, 0x5d, 0x77}) {
      const auto x_scale = uint8_t(code);
      const ExactBlocks blocks(noise, top, x_scale);
      const WeightRows rows{DType::kNVFP4, blocks.stored.data(), ExactBlocks::kRows, 64};
      const std::vector<float> y = multiply({rows}, blocks.x, {.rule = rule});
      for (size_t row = 0; row < y.size(); ++row)
        EXPECT_EQ(double(y[row]), blocks.expected[row])
            << nvfp4::rule_name(rule) << " scales " << code << " " << row;
    }
  }
}

// Parts with multipliers of their own are the same rows as in matrices of their own, whether or not
// they begin at a group of 16.
TEST_P(Nvfp4OnEveryIsa, StackedPartsKeepTheirMultipliers) {
  const int64_t k = 192, t = 5;
  const std::vector<float> x = make_input(t, k, 0, 8);
  for (const ActPrecision precision :
       {ActPrecision::kInt8Peak, ActPrecision::kInt15, ActPrecision::kNvfp4}) {
    std::vector<std::vector<std::byte>> stored;
    std::vector<WeightRows> parts;
    std::vector<std::vector<float>> apart;
    for (const int64_t n : {32, 5, 1, 30}) {
      stored.push_back(make_nvfp4(n, k, uint64_t(n)));
      const float scale = std::ldexp(1.7f, int(n % 7) - 3);
      parts.push_back({DType::kNVFP4, stored.back().data(), n, k, scale});
      apart.push_back(multiply({parts.back()}, x, {.precision = precision}));
    }
    const std::vector<float> y = multiply(parts, x, {.precision = precision});
    for (int64_t token = 0; token < t; ++token) {
      int64_t row = 0;
      for (size_t part = 0; part < parts.size(); ++part)
        for (int64_t r = 0; r < parts[part].n; ++r, ++row)
          ASSERT_EQ(y[size_t(token * 68 + row)], apart[part][size_t(token * parts[part].n + r)])
              << "part " << part << " row " << r;
    }
  }
}

// Other weights have no 4-bit activations: they are multiplied as by default.
TEST_P(Nvfp4OnEveryIsa, OtherTypesIgnoreFourBitActivations) {
  for (const DType dtype : {DType::kQ8_0, DType::kQ4_1, DType::kBF16}) {
    const std::vector<std::byte> stored = make_weights(dtype, 20, 64, 9);
    const WeightRows rows{dtype, stored.data(), 20, 64};
    const std::vector<float> x = make_input(3, 64, 0, 10);
    EXPECT_EQ(multiply({rows}, x, {}), multiply({rows}, x, {ActPrecision::kInt8Peak}));
  }
}

INSTANTIATE_TEST_SUITE_P(Qgemm,
                         Nvfp4OnEveryIsa,
                         ::testing::ValuesIn(available_isas()),
                         [](const auto& info) { return std::string(info.param); });

TEST(PackNvfp4, RefusesAScaleThatIsNoNumber) {
  ThreadPool pool(1);
  for (const int bad : {0x7f, 0xff}) {
    std::vector<std::byte> stored = make_nvfp4(3, 128, 2);
    stored[2 * 72 + 36 + 3] = std::byte(bad);
    const WeightRows rows{DType::kNVFP4, stored.data(), 3, 128};
    EXPECT_THROW(pack(std::span(&rows, 1), pool), Error);
  }
}

TEST(PackNvfp4, TakesTheBytesOfTheFormatAndFourARow) {
  ThreadPool pool(1);
  const std::vector<std::byte> stored = make_nvfp4(32, 128, 2);
  const WeightRows rows{DType::kNVFP4, stored.data(), 32, 128};
  EXPECT_EQ(pack(std::span(&rows, 1), pool)->bytes(), 32 * (72 + 4));
  EXPECT_EQ(packed_bytes(DType::kNVFP4, 32, 128), 32 * (72 + 4));
}

}  // namespace
}  // namespace longspur::kernels::qgemm
