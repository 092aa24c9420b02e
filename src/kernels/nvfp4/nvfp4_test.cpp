// The formats and scale rules against vectors computed independently, bit for bit.
#include "kernels/nvfp4/api.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "kernels/nvfp4/codec.h"

namespace longspur::kernels::nvfp4 {
namespace {

TEST(Codec, E2m1RoundsToNearestEvenAndSaturates) {
  const std::vector<std::pair<float, int>> cases = {
      {0.25f, 0}, {0.26f, 1}, {0.74f, 1}, {0.75f, 2}, {1.25f, 2},   {1.26f, 3}, {1.74f, 3},
      {1.75f, 4}, {2.5f, 4},  {2.51f, 5}, {3.49f, 5}, {3.5f, 6},    {5.0f, 6},  {5.01f, 7},
      {6.0f, 7},  {7.0f, 7},  {9.0f, 7},  {1e30f, 7}, {INFINITY, 7}};
  for (const auto& [x, code] : cases) {
    EXPECT_EQ(e2m1_encode(x), code) << x;
    EXPECT_EQ(e2m1_encode(-x), code == 0 ? 0 : code | 8) << -x;
  }
  for (uint32_t code = 0; code < 16; ++code)
    EXPECT_EQ(e2m1_encode(e2m1_decode(code)), code == 8 ? 0u : code);
}

TEST(Codec, E4m3NearestOfAllCodes) {
  for (uint32_t code = 0; code < 0x7e; ++code) {
    const float low = e4m3_decode(code), high = e4m3_decode(code + 1), middle = (low + high) / 2;
    EXPECT_EQ(e4m3_encode(low), code);
    EXPECT_EQ(e4m3_encode(middle), code + (code & 1));
    EXPECT_EQ(e4m3_encode(std::nextafter(middle, 0.0f)), code);
    EXPECT_EQ(e4m3_encode(std::nextafter(middle, 1e9f)), code + 1);
  }
  EXPECT_EQ(e4m3_encode(1e30f), kE4m3MaxCode);
  EXPECT_EQ(e4m3_encode(NAN), kE4m3Nan);
  EXPECT_TRUE(std::isnan(e4m3_decode(kE4m3Nan)));
}

struct Case {
  std::vector<float> x;
  float amax;
  Rule rule;
  Metric metric;
  int scale;
  std::vector<int> codes;
};

const std::vector<float> kA = {10, 20, 30, 40, 0, 0, 0, 0, -10, -20, -30, -40, 5, -5, 15, -15};

TEST(Quantize, GoldenVectors) {
  const std::vector<Case> cases = {
      {kA, 40, Rule::kStatic6, Metric::kMse, 0x7e, {0x53, 0x76, 0, 0, 0xdb, 0xfe, 0x91, 0xc4}},
      {kA, 40, Rule::kFourOverSix, Metric::kMse, 0x7c, {0x42, 0x65, 0, 0, 0xca, 0xed, 0x91, 0xb3}},
      {kA, 100, Rule::kStatic6, Metric::kMse, 0x73, {0x53, 0x76, 0, 0, 0xdb, 0xfe, 0xa2, 0xc4}},
      {kA,
       100,
       Rule::kFourOverSix,
       Metric::kAbsMax,
       0x72,
       {0x42, 0x65, 0, 0, 0xca, 0xed, 0x91, 0xb3}},
  };
  for (const Case& c : cases) {
    uint8_t codes[8] = {}, scale = 0;
    QuantizeArgs args;
    args.source = {c.x.data(), DType::kF32, 1, 16, 16, false};
    args.amax = &c.amax;
    args.recipe.rule = c.rule;
    args.recipe.metric = c.metric;
    args.codes = codes;
    args.scales = &scale;
    quantize_ref(args, 0, 1);
    EXPECT_EQ(scale, c.scale);
    EXPECT_EQ(std::vector<int>(codes, codes + 8), c.codes);
  }
}

// One row with its own largest magnitude.
std::vector<float> quantised_and_back(const std::vector<float>& x, const Recipe& recipe) {
  std::vector<uint8_t> codes(x.size() / 2), scales(x.size() / 16);
  std::vector<float> out(x.size());
  const auto k = int64_t(x.size());
  float amax = 0;
  for (const float v : x) amax = std::max(amax, std::fabs(v));
  QuantizeArgs args;
  args.source = {x.data(), DType::kF32, 1, k, k, false};
  args.amax = &amax;
  args.recipe = recipe;
  args.codes = codes.data();
  args.scales = scales.data();
  quantize_ref(args, 0, 1);
  const float multiplier = tensor_scale(amax, recipe);
  dequantize_ref({codes.data(), scales.data(), &multiplier, false, 1, k, DType::kF32, out.data()},
                 0, 1);
  return out;
}

TEST(Quantize, ErrorsAboveTheLargestFloat) {
  std::vector<float> x(32, 1.0f);
  x[3] = 1e30f;  // the squares of the others' errors are finite, those of 1e30 / 16 are not
  x[4] = 0.93e30f;
  for (const Rule rule : {Rule::kStatic6, Rule::kFourOverSix, Rule::kSweep, Rule::kFullSweep}) {
    Recipe recipe;
    recipe.rule = rule;
    EXPECT_NEAR(quantised_and_back(x, recipe)[3], 1e30f, 1e24f) << rule_name(rule);
  }
}

TEST(Quantize, UnbiasedRoundingNeverClips) {
  Recipe recipe;
  recipe.rounding = Rounding::kStochasticUnbiased;
  for (const Rule rule : {Rule::kStatic6, Rule::kFourOverSix}) {
    recipe.rule = rule;
    for (int step = 0; step < 64; ++step) {  // block maxima of every mantissa
      std::vector<float> x(32, 0.0f);
      x[0] = 2.0f;
      x[16] = 1.0f + float(step) / 64;
      double sum = 0;
      constexpr int kDraws = 400;
      for (int draw = 0; draw < kDraws; ++draw) {
        recipe.seed = uint64_t(draw);
        sum += double(quantised_and_back(x, recipe)[16]);
      }
      // the grid's step at the maximum is a third of it; four standard errors
      EXPECT_NEAR(sum / kDraws, double(x[16]), 4 * 0.25 / std::sqrt(double(kDraws))) << step;
    }
  }
}

TEST(Hadamard, GoldenVector) {
  float x[16];
  for (int i = 0; i < 16; ++i) x[i] = float(i + 1);
  hadamard16(x);
  const float expected[] = {-15.5, -7.5, 7.5, -.5, 7.5, -.5,  -15.5, 8.5,
                            8.5,   16.5, 1.5, 1.5, 1.5, -2.5, 10.5,  -17.5};
  for (int i = 0; i < 16; ++i) EXPECT_EQ(x[i], expected[i]) << i;
}

}  // namespace
}  // namespace longspur::kernels::nvfp4
