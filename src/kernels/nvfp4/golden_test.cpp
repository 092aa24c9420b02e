// Vectors computed independently of this code, bit for bit, on the reference and on every
// instruction set.
#include <gtest/gtest.h>

#include <array>
#include <bit>
#include <cmath>

#include "kernels/nvfp4/api.h"
#include "kernels/nvfp4/codec.h"
#include "kernels/nvfp4/nvfp4_cases.h"

namespace longspur::kernels::nvfp4 {
namespace {

using Bytes = std::vector<uint8_t>;

struct Golden {
  const char* id;
  std::vector<float> x;
  float amax;
  int scale448;
  Bytes bytes448;
  int scale6, scale4;
  uint32_t error6, error4;   // bits of the fp32 sums of squares
  std::array<int, 3> picks;  // by mse, mae, abs_max
  Bytes bytes6, bytes4;
};

std::vector<float> vector_g() {
  std::vector<float> x;
  for (int i = 0; i < 15; ++i) x.push_back(0x1p-17f * (float(i) - 7.5f) / 8);
  x.push_back(std::bit_cast<float>(0x373a0000u));  // 1.45 * 2^-17 in bf16
  return x;
}

const std::vector<float> kA = {10, 20, 30, 40, 0, 0, 0, 0, -10, -20, -30, -40, 5, -5, 15, -15};
const std::vector<float> kE = {.5f,     -1.25f, 2.75f, -.015625f, 3.125f, 1.5f,   -2.5f,  .75f,
                               -3.125f, .25f,   1,     -.125f,    2,      -1.75f, .0625f, 3};
const std::vector<float> kK = {
    -2.109375f, -1.046875f, .0339355469f, 1.640625f,   -3.59375f, -1.046875f, 2.203125f, .44921875f,
    -3.875f,    1.1171875f, -2,           -.62109375f, .7265625f, 2.703125f,  -2.125f,   3.84375f};
const std::vector<float> kI = {.25f,  .75f,  1.25f,  1.75f,  2.5f,  3.5f,  5,  6,
                               -.25f, -.75f, -1.25f, -1.75f, -2.5f, -3.5f, -5, -6};

std::vector<Golden> golden_vectors() {
  std::vector<float> h(16, 0.0f);
  h[0] = 0x1p-19f;
  h[1] = -0x1p-20f;
  const Bytes zeros(8, 0);
  const Bytes a6 = {0x53, 0x76, 0, 0, 0xdb, 0xfe, 0xa2, 0xc4};
  const Bytes a9 = {0x53, 0x76, 0, 0, 0xdb, 0xfe, 0x91, 0xc4};
  const Bytes a4 = {0x42, 0x65, 0, 0, 0xca, 0xed, 0x91, 0xb3};
  const Bytes e6 = {0xc2, 0x07, 0x57, 0x3e, 0x1f, 0x04, 0xd6, 0x70};
  const Bytes f6 = {0xc2, 0x07, 0x57, 0x3e, 0x1f, 0x04, 0xe6, 0x70};
  const Bytes e4 = {0xb1, 0x06, 0x46, 0x2d, 0x1e, 0x03, 0xc5, 0x60};
  const Bytes g448 = {0xdd, 0xcc, 0xab, 0x09, 0x10, 0x32, 0x44, 0x75};
  const Bytes g6 = {0xef, 0xde, 0xcd, 0x9a, 0x21, 0x54, 0x65, 0x76};
  const Bytes g4 = {0xcd, 0xbc, 0xab, 0x09, 0x10, 0x32, 0x43, 0x64};
  const Bytes i6 = {0x20, 0x42, 0x64, 0x76, 0xa0, 0xca, 0xec, 0xfe};
  const Bytes i4 = {0x10, 0x22, 0x43, 0x65, 0x90, 0xaa, 0xcb, 0xed};
  const Bytes k6 = {0xbd, 0x40, 0xbf, 0x15, 0x3f, 0xad, 0x62, 0x7d};
  const Bytes k4 = {0xac, 0x30, 0xae, 0x14, 0x2e, 0x9c, 0x51, 0x6c};
  return {
      {"A", kA, 40, 0x7e, a9, 0x78, 0x7c, 0x42055558, 0, {4, 4, 4}, a6, a4},
      {"B", kA, 100, 0x73, a6, 0x6d, 0x72, 0x41dc0d50, 0x41348e44, {4, 4, 4}, a9, a4},
      {"C",
       std::vector<float>(16, 1),
       1,
       0x7e,
       Bytes(8, 0x77),
       0x78,
       0x7c,
       0,
       0,
       {6, 6, 6},
       Bytes(8, 0x77),
       Bytes(8, 0x66)},
      {"E", kE, 3.125f, 0x7e, e6, 0x78, 0x7c, 0x3ee27557, 0x3eda2000, {4, 6, 4}, e6, e4},
      {"F", kE, 2688, 0x30, f6, 0x2a, 0x2e, 0x3f22a800, 0x3ebe2000, {4, 4, 4}, e6, e4},
      {"G", vector_g(), 1, 0x03, g448, 0x01, 0x02, 0x2d8aae38, 0x2cb1d552, {4, 4, 4}, g6, g4},
      {"H", h, 1, 0, zeros, 0, 0, 0x2ca00000, 0x2ca00000, {6, 6, 6}, zeros, zeros},
      {"I", kI, 6, 0x7e, i6, 0x78, 0x7c, 0x40600000, 0x3fc00000, {4, 4, 4}, i6, i4},
      {"K", kK, 4, 0x7e, k6, 0x78, 0x7c, 0x3ed0ecb9, 0x3ef07af2, {6, 6, 6}, k6, k4},
  };
}

// What one scale makes of a block, from the codec alone.
struct Candidate {
  Bytes bytes;
  float error = 0;
};
Candidate candidate(const std::vector<float>& x, float amax, int scale, float top) {
  Candidate result{Bytes(x.size() / 2, 0), 0};
  const float dec = 1.0f / (top / amax), s = e4m3_decode(uint32_t(scale));
  for (size_t i = 0; i < x.size(); ++i) {
    const float inv = s == 0 ? 0.0f : 1.0f / (dec * s);
    const uint8_t code = e2m1_encode(x[i] * inv);
    result.bytes[i / 2] = uint8_t(result.bytes[i / 2] | code << (i % 2 * 4));
    const volatile float decoded = e2m1_decode(code) * s * amax;
    const volatile float difference = decoded / top - x[i];
    const volatile float square = difference * difference;
    result.error = result.error + square;
  }
  return result;
}

QuantizeArgs one_block(const std::vector<float>& x, const float& amax) {
  QuantizeArgs args;
  args.source = {x.data(), DType::kF32, 1, int64_t(x.size()), int64_t(x.size()), false};
  args.amax = &amax;
  return args;
}

TEST(Golden, EveryRuleAndPath) {
  for (const Golden& golden : golden_vectors()) {
    for (const std::string& path : paths()) {
      SCOPED_TRACE(golden.id + (" on " + path));
      QuantizeArgs args = one_block(golden.x, golden.amax);
      args.recipe.rule = Rule::kStatic6;
      EXPECT_EQ(quantized(path, args), (Quantized{golden.bytes448, {uint8_t(golden.scale448)}}));
      args.recipe.bound = 256;
      EXPECT_EQ(quantized(path, args), (Quantized{golden.bytes6, {uint8_t(golden.scale6)}}));
      args.recipe = {};
      for (const Metric metric : {Metric::kMse, Metric::kMae, Metric::kAbsMax}) {
        args.recipe.metric = metric;
        const bool four = golden.picks[size_t(metric)] == 4;
        const int scale = four ? golden.scale4 : golden.scale6;
        EXPECT_EQ(quantized(path, args),
                  (Quantized{four ? golden.bytes4 : golden.bytes6, {uint8_t(scale)}}))
            << metric_name(metric);
      }
    }
  }
}

TEST(Golden, ErrorsOfBothCandidates) {
  for (const Golden& golden : golden_vectors()) {
    const Candidate six = candidate(golden.x, golden.amax, golden.scale6, 1536);
    const Candidate four = candidate(golden.x, golden.amax, golden.scale4, 1536);
    EXPECT_EQ(six.bytes, golden.bytes6) << golden.id;
    EXPECT_EQ(four.bytes, golden.bytes4) << golden.id;
    EXPECT_EQ(std::bit_cast<uint32_t>(six.error), golden.error6) << golden.id;
    EXPECT_EQ(std::bit_cast<uint32_t>(four.error), golden.error4) << golden.id;
  }
}

TEST(Golden, SweepOfOneBlock) {
  const double errors[] = {1.210682, .661528, .437950, .408056, 1.417930,
                           1.311702, .583186, .469688, .944081, .661528};
  for (int code = 0x75; code <= 0x7e; ++code)
    EXPECT_NEAR(double(candidate(kK, 4, code, 1536).error), errors[code - 0x75], 1e-6) << code;
  const float amax = 4;
  for (const std::string& path : paths()) {
    for (const Rule rule : {Rule::kSweep, Rule::kFullSweep}) {
      QuantizeArgs args = one_block(kK, amax);
      args.recipe.rule = rule;
      EXPECT_EQ(quantized(path, args).scales, Bytes{0x78}) << path;
    }
  }
}

TEST(Golden, EncodeAndDecodeFactors) {
  struct Factors {
    float amax;
    uint32_t enc256, dec256, enc448, dec448;
  };
  for (const Factors& f : {Factors{40, 0x4219999a, 0x3cd55555, 0x42866666, 0x3c73cf3e},
                           Factors{1, 0x44c00000, 0x3a2aaaab, 0x45280000, 0x39c30c31},
                           Factors{3.125f, 0x43f5c28f, 0x3b055556, 0x44570a3d, 0x3a986186},
                           Factors{2688, 0x3f124925, 0x3fdfffff, 0x3f800000, 0x3f800000}}) {
    Recipe recipe;
    for (const bool plain : {false, true}) {
      recipe.rule = plain ? Rule::kStatic6 : Rule::kFourOverSix;
      const float enc = scale_target(recipe) / f.amax;
      EXPECT_EQ(std::bit_cast<uint32_t>(enc), plain ? f.enc448 : f.enc256);
      EXPECT_EQ(std::bit_cast<uint32_t>(1.0f / enc), plain ? f.dec448 : f.dec256);
    }
  }
}

TEST(Golden, Tile) {
  std::vector<float> x(256);
  for (int r = 0; r < 16; ++r)
    for (int c = 0; c < 16; ++c) x[size_t(16 * r + c)] = float((37 * r + 61 * c) % 97 - 48) / 16;
  const float amax = 3;
  QuantizeArgs args;
  args.source = {x.data(), DType::kF32, 16, 16, 16, false};
  args.amax = &amax;
  args.recipe.tile_2d = true;
  for (const std::string& path : paths()) {
    args.recipe.rule = Rule::kFourOverSix;
    const Quantized four = quantized(path, args);
    EXPECT_EQ(four.scales, Bytes(16, 0x7c)) << path;
    EXPECT_EQ(Bytes(four.codes.begin(), four.codes.begin() + 8),
              (Bytes{0x2e, 0x5c, 0xd0, 0xa4, 0x3e, 0x5b, 0xd1, 0x94}))
        << path;
    args.recipe.rule = Rule::kStatic6;
    args.recipe.bound = 256;
    const Quantized six = quantized(path, args);
    EXPECT_EQ(six.scales, Bytes(16, 0x78)) << path;
    EXPECT_EQ(Bytes(six.codes.begin(), six.codes.begin() + 8),
              (Bytes{0x3f, 0x6d, 0xe0, 0xa5, 0x4f, 0x7c, 0xe1, 0xa6}))
        << path;
    args.recipe.bound = 0;
  }
  EXPECT_EQ(candidate(x, 3, 0x78, 1536).error, 9.375f);
  EXPECT_EQ(candidate(x, 3, 0x7c, 1536).error, 8.109375f);
}

TEST(Golden, SwizzledOffsets) {
  const int64_t offsets[][3] = {{0, 0, 0},   {0, 3, 3},      {1, 0, 16},    {31, 3, 499},
                                {32, 0, 4},  {96, 0, 12},    {127, 3, 511}, {0, 4, 512},
                                {5, 6, 594}, {128, 0, 1024}, {130, 7, 1571}};
  for (const auto& [row, column, offset] : offsets)
    EXPECT_EQ(swizzled_scale_offset(row, column, 8), offset) << row << ", " << column;
  EXPECT_EQ(swizzled_scale_bytes(130, 7), 256 * 8);
}

TEST(Golden, RotatedBlock) {
  std::vector<float> x(16);
  for (int i = 0; i < 16; ++i) x[size_t(i)] = float(i + 1);
  std::vector<float> rotated = x;
  hadamard16(rotated.data());
  const std::vector<float> expected = {-15.5, -7.5, 7.5, -.5, 7.5, -.5,  -15.5, 8.5,
                                       8.5,   16.5, 1.5, 1.5, 1.5, -2.5, 10.5,  -17.5};
  EXPECT_EQ(rotated, expected);
  const float amax = 17.5f;
  QuantizeArgs plain = one_block(expected, amax), turned = one_block(x, amax);
  turned.recipe.hadamard = true;
  for (const std::string& path : paths()) {
    EXPECT_EQ(quantized(path, turned), quantized("reference", plain)) << path;
    if (path == "reference") continue;
    limit_isa(path);
    EXPECT_EQ(max_magnitude(turned.source, true, 0, 1, nullptr), amax);
    EXPECT_EQ(max_magnitude(turned.source, false, 0, 1, nullptr), 16.0f);
  }
}

}  // namespace
}  // namespace longspur::kernels::nvfp4
