// The kernels against quantize_ref and dequantize_ref, bit for bit, and published vectors.
#include "kernels/nvfp4/cuda/quantize.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "base/half.h"
#include "base/rng.h"
#include "kernels/common/cuda/device_test.cuh"
#include "kernels/nvfp4/codec.h"
#include "kernels/nvfp4/cuda/quantize_test_util.cuh"

namespace longspur::kernels::nvfp4::cuda {
namespace {

TEST(QuantizeCuda, EqualsTheReferenceInEveryMode) {
  LONGSPUR_REQUIRE_DEVICE();
  const int64_t rows[] = {1, 33, 130, 17, 5}, ks[] = {16, 80, 208, 1040, 48};
  unsigned n = 0;
  for (const Rule rule : kRules) {
    for (const Metric metric : kMetrics) {
      for (const Rounding rounding :
           {Rounding::kNearest, Rounding::kStochastic, Rounding::kStochasticUnbiased}) {
        for (int mode = 0; mode < 8; ++mode, ++n) {
          Call run;
          run.recipe = {rule, metric, (mode & 1) != 0, rounding, 1234567891011u + n};
          run.recipe.hadamard = (mode & 2) != 0;
          run.recipe.bound = n % 5 == 0 ? 448 : n % 5 == 1 ? 256 : 0;
          run.amax_from = Amax(n % 3);
          run.amax_per_row = n % 2 == 0;
          run.importance = n % 7 < 2;
          run.swizzled = n % 4 == 1;
          const DType dtype = std::vector{DType::kF32, DType::kBF16, DType::kF16}[n / 2 % 3];
          int64_t r = rows[n % 5];
          if (run.recipe.tile_2d) r = (r + 15) / 16 * 16;
          check(make_matrix(dtype, r, ks[n / 3 % 5], n % 3, (mode & 4) != 0, n), run);
        }
      }
    }
  }
}

struct Vector {
  const char* name;
  std::vector<float> x;
  float amax;
  int scale448;
  const char* codes448;
  int scale6, scale4;
  bool four[3];  // picked by mse, mae, abs_max
  const char *codes6, *codes4;
};

std::vector<Vector> published_vectors() {
  const std::vector<float> a = {10, 20, 30, 40, 0, 0, 0, 0, -10, -20, -30, -40, 5, -5, 15, -15};
  const std::vector<float> e = {.5f,     -1.25f, 2.75f, -.015625f, 3.125f, 1.5f,   -2.5f,  .75f,
                                -3.125f, .25f,   1,     -.125f,    2,      -1.75f, .0625f, 3};
  std::vector<float> g, h(16, 0.0f), i;
  for (int j = 0; j < 15; ++j) g.push_back((float(j) - 7.5f) / 8 * 0x1p-17f);
  g.push_back(bf16_to_float(float_to_bf16(1.45f * 0x1p-17f)));
  h[0] = 0x1p-19f, h[1] = -0x1p-20f;
  for (const float sign : {1.0f, -1.0f})
    for (const float v : {.25f, .75f, 1.25f, 1.75f, 2.5f, 3.5f, 5.0f, 6.0f}) i.push_back(sign * v);
  const std::vector<float> k = {-2.109375f, -1.046875f, .0339355469f, 1.640625f,
                                -3.59375f,  -1.046875f, 2.203125f,    .44921875f,
                                -3.875f,    1.1171875f, -2,           -.62109375f,
                                .7265625f,  2.703125f,  -2.125f,      3.84375f};
  return {
      {"A",
       a,
       40,
       0x7e,
       "53760000dbfe91c4",
       0x78,
       0x7c,
       {true, true, true},
       "53760000dbfea2c4",
       "42650000caed91b3"},
      {"B",
       a,
       100,
       0x73,
       "53760000dbfea2c4",
       0x6d,
       0x72,
       {true, true, true},
       "53760000dbfe91c4",
       "42650000caed91b3"},
      {"C",
       std::vector<float>(16, 1.0f),
       1,
       0x7e,
       "7777777777777777",
       0x78,
       0x7c,
       {false, false, false},
       "7777777777777777",
       "6666666666666666"},
      {"E",
       e,
       3.125f,
       0x7e,
       "c207573e1f04d670",
       0x78,
       0x7c,
       {true, false, true},
       "c207573e1f04d670",
       "b106462d1e03c560"},
      {"F",
       e,
       2688,
       0x30,
       "c207573e1f04e670",
       0x2a,
       0x2e,
       {true, true, true},
       "c207573e1f04d670",
       "b106462d1e03c560"},
      {"G",
       g,
       1,
       0x03,
       "ddccab0910324475",
       0x01,
       0x02,
       {true, true, true},
       "efdecd9a21546576",
       "cdbcab0910324364"},
      {"H",
       h,
       1,
       0x00,
       "0000000000000000",
       0x00,
       0x00,
       {false, false, false},
       "0000000000000000",
       "0000000000000000"},
      {"I",
       i,
       6,
       0x7e,
       "20426476a0caecfe",
       0x78,
       0x7c,
       {true, true, true},
       "20426476a0caecfe",
       "102243659"
       "0aacbed"},
      {"K",
       k,
       4,
       0x7e,
       "bd40bf153fad627d",
       0x78,
       0x7c,
       {false, false, false},
       "bd40bf153fad627d",
       "ac30ae142e9c516c"},
  };
}

std::string hex(const std::vector<uint8_t>& bytes) {
  std::string text;
  for (const uint8_t b : bytes) text += {"0123456789abcdef"[b >> 4], "0123456789abcdef"[b & 15]};
  return text;
}

TEST(QuantizeCuda, PublishedVectors) {
  LONGSPUR_REQUIRE_DEVICE();
  for (const Vector& v : published_vectors()) {
    for (const DType dtype : {DType::kF32, DType::kBF16}) {
      Matrix m{dtype, 1, 16, 16, false, std::vector<uint8_t>(dtype == DType::kF32 ? 64 : 32)};
      for (int64_t i = 0; i < 16; ++i) put(m, i, v.x[size_t(i)]);
      if (dtype == DType::kBF16 && get(m, 2) != v.x[2]) continue;  // K is fp32 only
      for (const bool strict : {true, false}) {
        Call run{{Rule::kStatic6}, Amax::kGiven, false, false, false, strict};
        Result r = on_device(m, run, {v.amax});
        EXPECT_EQ(r.scales[0], v.scale448) << v.name;
        EXPECT_EQ(hex(r.codes), v.codes448) << v.name;
        run.recipe.rule = Rule::kFourOverSix;
        for (int metric = 0; metric < 3; ++metric) {
          run.recipe.metric = kMetrics[metric];
          r = on_device(m, run, {v.amax});
          EXPECT_EQ(r.scales[0], v.four[metric] ? v.scale4 : v.scale6)
              << v.name << metric << strict;
          EXPECT_EQ(hex(r.codes), v.four[metric] ? v.codes4 : v.codes6)
              << v.name << metric << strict;
        }
      }
      if (v.name[0] != 'K') continue;
      Call run{{Rule::kSweep}, Amax::kGiven};
      EXPECT_EQ(on_device(m, run, {v.amax}).scales[0], 0x78);
    }
  }
}

TEST(QuantizeCuda, PublishedTile) {
  LONGSPUR_REQUIRE_DEVICE();
  Matrix m{DType::kF32, 16, 16, 16, false, std::vector<uint8_t>(1024)};
  for (int r = 0; r < 16; ++r)
    for (int c = 0; c < 16; ++c) put(m, r * 16 + c, float((37 * r + 61 * c) % 97 - 48) / 16);
  Call run;
  run.recipe.tile_2d = true;
  run.amax_from = Amax::kTensor;
  const Result r = on_device(m, run, {0.0f});
  EXPECT_EQ(r.scales, std::vector<uint8_t>(16, 0x7c));
  EXPECT_EQ(hex({r.codes.begin(), r.codes.begin() + 8}), "2e5cd0a43e5bd194");
  EXPECT_EQ(r.multiplier[0], 3.0f / 1536);
}

// Zeros, denormals, infinities, NaN and huge values, in rows and blocks of their own.
TEST(QuantizeCuda, SpecialValues) {
  LONGSPUR_REQUIRE_DEVICE();
  const float big = std::numeric_limits<float>::max(), inf = INFINITY;
  const float row_values[] = {0,   1e-40f, 1e-38f, big,    inf,   -inf,
                              NAN, 1e30f,  1e-30f, -1e19f, 3e-36f};
  for (const bool transposed : {false, true}) {
    for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
      Matrix m = make_matrix(dtype, 16, 96, 0, transposed, 9);
      for (int64_t row = 0; row < 11; ++row) {
        const int64_t k = 16 * (row % 3) + row;
        put(m, transposed ? k * m.ld + row : row * m.ld + k, row_values[row]);
        for (int64_t i = 64; i < 96 && row % 2 == 0; ++i)  // tiny beside the rest
          put(m, transposed ? i * m.ld + row : row * m.ld + i, row_values[row] * 1e-6f);
      }
      for (int64_t i = 0; i < 96; ++i)  // a row of zeros, one of denormals
        for (const int64_t row : {12, 13})
          put(m, transposed ? i * m.ld + row : row * m.ld + i,
              row == 12 ? 0.0f : float(i) * 1e-41f);
      for (const Rule rule : kRules) {
        for (const bool tiles : {false, true}) {
          for (const bool strict : {true, false}) {
            // scores in half precision may pick another scale
            if (!strict && rule != Rule::kStatic6 && rule != Rule::kStatic4) continue;
            Call run{{rule, Metric::kMse, tiles}, Amax::kRow, false, false, false, strict};
            check(m, run);
            run.amax_from = Amax::kTensor;
            check(m, run);
          }
        }
      }
    }
  }
}

// Share of differing bytes.
double differing(const std::vector<uint8_t>& a, const std::vector<uint8_t>& b) {
  EXPECT_EQ(a.size(), b.size());
  double n = 0;
  for (size_t i = 0; i < a.size(); ++i) n += a[i] != b[i];
  return n / double(a.size());
}

// Both at once, each as the reference does it alone.
TEST(QuantizeCuda, MatrixAndTranspose) {
  LONGSPUR_REQUIRE_DEVICE();
  for (const bool given : {false, true}) {
    for (const bool swizzled : {false, true}) {
      const Matrix m = make_matrix(DType::kBF16, 208, 144, 8, false, 3);
      Matrix t = m;
      t.transposed = true;
      std::swap(t.rows, t.k);
      QuantizeBoth args;
      args.recipe.rounding = Rounding::kStochastic;
      args.transposed_recipe.hadamard = true;
      args.transposed_recipe.rule = Rule::kSweep;
      args.strict = true;
      const auto amax = amax_of(m, args.recipe, false);
      const auto amax_t = amax_of(t, args.transposed_recipe, false);
      const DeviceArray<uint8_t> x(m.bytes), workspace(std::vector<uint8_t>(8, kPoison));
      const DeviceArray<float> da(amax), dt(amax_t);
      Places out(m.rows, m.k, 1, swizzled), out_t(t.rows, t.k, 1, swizzled);
      args.source = m.on(x.get());
      args.amax_from = given ? Amax::kGiven : Amax::kTensor;
      args.amax = da.get();
      args.transposed_amax = dt.get();
      args.out = out.out();
      args.transposed_out = out_t.out();
      ASSERT_EQ(quantize_both(args, workspace.get(), nullptr), nullptr);
      expect_equal(out.result(), reference(m, args.recipe, amax), "rows");
      expect_equal(out_t.result(), reference(t, args.transposed_recipe, amax_t), "columns");
    }
  }
}

// Half precision scores in both orientations; none, one or both of them rotated.
TEST(QuantizeCuda, MatrixAndTransposeInHalfPrecision) {
  LONGSPUR_REQUIRE_DEVICE();
  const Matrix m = make_matrix(DType::kBF16, 1040, 912, 0, false, 13);
  Matrix t = m;
  t.transposed = true;
  std::swap(t.rows, t.k);
  for (int n = 0; n < 8; ++n) {
    QuantizeBoth args;
    args.recipe.rule = kRules[n % 4];
    args.transposed_recipe.rule = kRules[(n + 2) % 4];
    args.recipe.hadamard = n >= 6;
    args.transposed_recipe.hadamard = n % 2 == 1;
    const DeviceArray<uint8_t> x(m.bytes), workspace(std::vector<uint8_t>(8, kPoison));
    Places out(m.rows, m.k, 1, n % 3 == 0), out_t(t.rows, t.k, 1, n % 3 == 1);
    args.source = m.on(x.get());
    args.out = out.out();
    args.transposed_out = out_t.out();
    ASSERT_EQ(quantize_both(args, workspace.get(), nullptr), nullptr);
    const Result a = out.result(), b = out_t.result();
    const Result ra = reference(m, args.recipe, amax_of(m, args.recipe, false));
    const Result rb =
        reference(t, args.transposed_recipe, amax_of(t, args.transposed_recipe, false));
    EXPECT_TRUE(same(a.multiplier, ra.multiplier));
    EXPECT_TRUE(same(b.multiplier, rb.multiplier));
    EXPECT_LE(differing(a.scales, ra.scales), 1e-3) << n;
    EXPECT_LE(differing(b.scales, rb.scales), 1e-3) << n;
    EXPECT_LE(differing(a.codes, ra.codes), 1e-3) << n;
    EXPECT_LE(differing(b.codes, rb.codes), 1e-3) << n;
  }
}

TEST(QuantizeCuda, TilesOfTheTransposeAreThoseOfTheMatrix) {
  LONGSPUR_REQUIRE_DEVICE();
  const Matrix m = make_matrix(DType::kF32, 112, 176, 0, false, 4);
  QuantizeBoth args;
  args.recipe.tile_2d = args.transposed_recipe.tile_2d = true;
  const DeviceArray<uint8_t> x(m.bytes), workspace(std::vector<uint8_t>(8));
  Places out(m.rows, m.k, 1, false), out_t(m.k, m.rows, 1, false);
  args.source = m.on(x.get());
  args.out = out.out();
  args.transposed_out = out_t.out();
  ASSERT_EQ(quantize_both(args, workspace.get(), nullptr), nullptr);
  const Result a = out.result(), b = out_t.result();
  expect_equal(a, reference(m, args.recipe, amax_of(m, args.recipe, false)), "rows");
  for (int64_t r = 0; r < m.rows; ++r) {
    for (int64_t k = 0; k < m.k; ++k) {
      ASSERT_EQ(a.codes[size_t(r * m.k + k) / 2] >> (k % 2 * 4) & 15,
                b.codes[size_t(k * m.rows + r) / 2] >> (r % 2 * 4) & 15);
      ASSERT_EQ(a.scales[size_t(r * m.k + k) / 16], b.scales[size_t(k * m.rows + r) / 16]);
    }
  }
}

// y: what the fused step should have quantised, from a computation in double; rounded to dtype.
void check_fused(const std::vector<double>& y,
                 int64_t rows,
                 int64_t k,
                 DType dtype,
                 const Recipe& recipe,
                 const Result& found) {
  Matrix m{dtype, rows,  k,
           k,     false, std::vector<uint8_t>(size_t(rows * k * (dtype == DType::kF32 ? 4 : 2)))};
  for (size_t i = 0; i < y.size(); ++i) put(m, int64_t(i), float(y[i]));
  const Result expected = reference(m, recipe, amax_of(m, recipe, true));
  // A value that rounds to the other bf16 may change its block's scale, and with it eight bytes.
  EXPECT_LE(differing(found.scales, expected.scales), 1e-2 + 1.0 / double(found.scales.size()));
  EXPECT_LE(differing(found.codes, expected.codes), 5e-3 + 8.0 / double(found.codes.size()));
  for (int64_t r = 0; r < rows; ++r)
    EXPECT_NEAR(found.multiplier[size_t(r)], expected.multiplier[size_t(r)],
                4e-6f * expected.multiplier[size_t(r)]);
}

TEST(QuantizeCuda, AfterRmsNorm) {
  LONGSPUR_REQUIRE_DEVICE();
  for (const int64_t k : {16, 4096, 9008}) {
    for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
      const int64_t rows = 19;
      const Matrix m = make_matrix(dtype, rows, k, 8, false, 6);
      const auto weight = testing::random_floats(size_t(k), 8);
      std::vector<double> y;
      for (int64_t r = 0; r < rows; ++r) {
        double squares = 0;
        for (int64_t i = 0; i < k; ++i)
          squares += double(element(m, r, i)) * double(element(m, r, i));
        const double scale = 1 / std::sqrt(squares / double(k) + 1e-5);
        for (int64_t i = 0; i < k; ++i)
          y.push_back(double(element(m, r, i)) * scale * double(weight[size_t(i)]));
      }
      const DeviceArray<uint8_t> x(m.bytes);
      const DeviceArray<float> w(weight);
      Places out(rows, k, rows, k == 4096);
      NormQuantize args{x.get(), dtype, rows, k, m.ld, w.get(), 1e-5f, {}, out.out()};
      ASSERT_EQ(rms_norm_quantize(args, nullptr), nullptr);
      check_fused(y, rows, k, dtype, args.recipe, out.result());
    }
  }
}

TEST(QuantizeCuda, AfterSwiGlu) {
  LONGSPUR_REQUIRE_DEVICE();
  for (const int64_t k : {16, 4096, 9008}) {
    for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
      const int64_t rows = 19;
      const Matrix m = make_matrix(dtype, rows, 2 * k, 0, false, 7);
      std::vector<double> y;
      for (int64_t r = 0; r < rows; ++r) {
        for (int64_t i = 0; i < k; ++i) {
          const double gate = double(element(m, r, i));
          y.push_back(gate / (1 + std::exp(-gate)) * double(element(m, r, k + i)));
        }
      }
      const DeviceArray<uint8_t> x(m.bytes);
      Places out(rows, k, rows, false);
      SwiGluQuantize args{x.get(), dtype, rows, k, m.ld, {}, out.out()};
      ASSERT_EQ(swiglu_quantize(args, nullptr), nullptr);
      check_fused(y, rows, k, dtype, args.recipe, out.result());
    }
  }
}

// The mean over many rows of the same numbers, each with draws of its own.
TEST(QuantizeCuda, StochasticMeanHasNoBias) {
  LONGSPUR_REQUIRE_DEVICE();
  constexpr int64_t kRows = 4096, kK = 256;  // 1,048,576 draws
  const auto values = testing::random_floats(kK, 12);
  Matrix m{DType::kF32, kRows, kK, kK, false, std::vector<uint8_t>(size_t(kRows * kK * 4))};
  for (int64_t i = 0; i < kRows * kK; ++i) put(m, i, values[size_t(i % kK)]);
  Call run;
  run.recipe.rounding = Rounding::kStochasticUnbiased;
  run.amax_from = Amax::kTensor;
  const Result r = on_device(m, run, {0.0f});
  std::vector<double> mean(size_t(kK), 0.0);
  for (int64_t i = 0; i < kRows * kK; ++i) {
    const uint32_t code = r.codes[size_t(i / 2)] >> (i % 2 * 4) & 15u;
    mean[size_t(i % kK)] += double(e2m1_decode(code) * e4m3_decode(r.scales[size_t(i / 16)])) *
                            double(r.multiplier[0]) / double(kRows);
  }
  double bias = 0, norm = 0;
  for (size_t i = 0; i < mean.size(); ++i) {
    bias += (mean[i] - double(values[i])) * (mean[i] - double(values[i]));
    norm += double(values[i]) * double(values[i]);
  }
  EXPECT_LE(bias / norm, 1e-5);  // 5e-6 of it is the noise of 4,096 draws
}

// What half precision scores may change: which of two candidates of nearly the same error.
void check_picks(const Matrix& m, Call run, double share) {
  const auto amax = amax_of(m, run.recipe, run.amax_from == Amax::kRow);
  const Result expected = reference(m, run.recipe, amax);
  expect_equal(on_device(m, run, amax), expected, describe(m, run));
  run.strict = false;
  const Result found = on_device(m, run, amax);
  EXPECT_TRUE(same(found.multiplier, expected.multiplier));
  EXPECT_LE(differing(found.scales, expected.scales), share) << describe(m, run);
  size_t wrong = 0;
  for (size_t b = 0; b < found.scales.size(); ++b) {
    const float a = amax[run.amax_from == Amax::kRow ? b / size_t(m.k / kBlock) : 0];
    const float dec = 1.0f / (scale_top(run.recipe) / a);
    const float inverse = 1.0f / (dec * e4m3_decode(found.scales[b]));
    for (int i = 0; i < kBlock && found.scales[b] != 0; ++i) {
      const auto at = int64_t(b) * kBlock + i;
      const float x = element(m, at / m.k, at % m.k);
      wrong += (found.codes[size_t(at / 2)] >> (at % 2 * 4) & 15) != e2m1_encode(x * inverse);
    }
  }
  EXPECT_EQ(wrong, 0u) << describe(m, run);
}

TEST(QuantizeCuda, HalfPrecisionScores) {
  LONGSPUR_REQUIRE_DEVICE();
  for (const int64_t k : {80, 4096, 8192, 14336}) {
    const int64_t rows = (int64_t(1) << 21) / k;
    Matrix m{DType::kBF16, rows, k, k, false, std::vector<uint8_t>(size_t(rows * k * 2))};
    const auto values = testing::random_floats(size_t(rows * k), unsigned(k));
    for (int64_t i = 0; i < rows * k; ++i)
      put(m, i, values[size_t(i)] * (i % 97 == 0 ? 8.0f : 1.0f));
    for (const Amax from : {Amax::kRow, Amax::kTensor}) {
      Call run;
      run.amax_from = from;
      run.swizzled = k == 4096;
      run.recipe.rule = Rule::kStatic6;
      check_picks(m, run, 0);
      run.recipe.rule = Rule::kStatic4;
      check_picks(m, run, 0);
      run.recipe.rule = Rule::kFourOverSix;
      check_picks(m, run, 1e-3);
      run.recipe.metric = Metric::kMae;
      check_picks(m, run, 1e-3);
      run.recipe = {Rule::kSweep};
      check_picks(m, run, 1e-3);
    }
  }
}

TEST(DequantizeCuda, EqualsTheReference) {
  LONGSPUR_REQUIRE_DEVICE();
  const int64_t rows = 37, k = 240, columns = k / kBlock;
  Noise noise(3);
  std::vector<uint8_t> codes(size_t(rows * k / 2)), scales(size_t(rows * columns)),
      swizzled(size_t(swizzled_scale_bytes(rows, columns)));
  for (uint8_t& c : codes) c = uint8_t(noise.bits());
  for (uint8_t& s : scales) s = uint8_t(noise.bits());
  for (int64_t i = 0; i < rows * columns; ++i)
    swizzled[size_t(swizzled_scale_offset(i / columns, i % columns, columns))] = scales[size_t(i)];
  auto multiplier = testing::random_floats(size_t(rows), 2, 1e-2f);
  multiplier[3] = NAN;
  multiplier[4] = 1e36f;
  const DeviceArray<uint8_t> dc(codes), ds(scales), dz(swizzled);
  const DeviceArray<float> dm(multiplier);
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
    for (const bool per_row : {false, true}) {
      const size_t bytes = size_t(rows * k * (dtype == DType::kF32 ? 4 : 2));
      std::vector<uint8_t> expected(bytes);
      dequantize_ref({codes.data(), scales.data(), multiplier.data(), per_row, rows, k, dtype,
                      expected.data()},
                     0, rows);
      for (const bool tiled : {false, true}) {
        const DeviceArray<uint8_t> out(std::vector<uint8_t>(bytes, kPoison));
        const DequantizeArgs args{
            dc.get(), tiled ? dz.get() : ds.get(), dm.get(), per_row, rows, k, dtype, out.get()};
        ASSERT_EQ(dequantize(args, tiled, nullptr), nullptr);
        Matrix a{dtype, rows, k, k, false, out.download()}, b = a;
        b.bytes = expected;
        for (int64_t i = 0; i < rows * k; ++i) {
          const float x = get(a, i), y = get(b, i);
          ASSERT_TRUE(x == y || (std::isnan(x) && std::isnan(y))) << i << ": " << x << ", " << y;
        }
      }
    }
  }
}

TEST(QuantizeCuda, RefusesWhatItCannotDo) {
  LONGSPUR_REQUIRE_DEVICE();
  const DeviceArray<uint8_t> memory(std::vector<uint8_t>(4096));
  Quantize good;
  good.source = {memory.get(), DType::kBF16, 2, 32, 32, false};
  good.out = {memory.get() + 1024, memory.get() + 2048, nullptr, false};
  EXPECT_EQ(quantize(good, nullptr, nullptr), nullptr);
  Quantize args = good;
  args.source.k = 24;
  EXPECT_NE(quantize(args, nullptr, nullptr), nullptr);
  args = good;
  args.source.dtype = DType::kI8;
  EXPECT_NE(quantize(args, nullptr, nullptr), nullptr);
  args = good;
  args.recipe.tile_2d = true;
  EXPECT_NE(quantize(args, nullptr, nullptr), nullptr);
  args = good;
  args.amax_from = Amax::kGiven;
  EXPECT_NE(quantize(args, nullptr, nullptr), nullptr);
  args.amax_from = Amax::kTensor;
  EXPECT_NE(quantize(args, nullptr, nullptr), nullptr);  // no workspace
  args = good;
  args.out.codes += 1;
  EXPECT_NE(quantize(args, nullptr, nullptr), nullptr);
  args = good;
  args.source.rows = 0;
  EXPECT_EQ(quantize(args, nullptr, nullptr), nullptr);
  EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
}

}  // namespace
}  // namespace longspur::kernels::nvfp4::cuda
