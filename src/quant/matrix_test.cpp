// The matrix methods: the laws they keep, odd inputs, refusals.
#include "quant/matrix.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/error.h"
#include "kernels/nvfp4/codec.h"
#include "quant/lanes.h"
#include "quant/matrix_cases.h"

namespace longspur::quant {
namespace {

namespace nvfp4 = kernels::nvfp4;
using testing::Case;
using testing::gptq;
using ::testing::HasSubstr;
using testing::loss;
using testing::make_case;
using testing::row_loss;
using testing::run;
using ::testing::ThrowsMessage;
using testing::values_of;

TEST(Rtn, IsTheKernels) {
  const Case c = make_case(33, 80, 100, 14);
  for (const bool weighted : {false, true}) {
    MatrixMethod method;
    method.recipe.rule = nvfp4::Rule::kSweep;
    method.weighted = weighted;
    const QuantizedMatrix found = run(c, method, 2);
    std::vector<float> importance;
    for (int64_t i = 0; i < c.k; ++i) importance.push_back(c.gram[size_t(i * c.k + i)]);
    QuantizedMatrix expected = found;
    const float amax = c.amax();
    nvfp4::QuantizeArgs args;
    args.source = {c.w.data(), DType::kF32, c.n, c.k, c.k, false};
    args.amax = &amax;
    args.importance = weighted ? importance.data() : nullptr;
    args.recipe = method.recipe;
    args.codes = expected.codes.data();
    args.scales = expected.scales.data();
    nvfp4::quantize_ref(args, 0, c.n);
    EXPECT_EQ(found.codes, expected.codes);
    EXPECT_EQ(found.scales, expected.scales);
    EXPECT_EQ(found.multiplier, nvfp4::tensor_scale(amax, method.recipe));
  }
}

// The weighted error of one block with one scale, codes to the nearest.
double block_error(const Case& c, int64_t row, int64_t block, uint8_t scale, float enc) {
  const float step = 1.0f / enc * nvfp4::e4m3_decode(scale);
  double sum = 0;
  for (int64_t i = block * kBlock; i < (block + 1) * kBlock; ++i) {
    const float w = c.w[size_t(row * c.k + i)];
    const uint8_t code = step == 0 ? uint8_t(0) : nvfp4::e2m1_encode(w / step);
    const double difference = double(nvfp4::e2m1_decode(code)) * double(step) - double(w);
    sum += difference * difference * double(c.gram[size_t(i * c.k + i)]);
  }
  return sum;
}

TEST(Rtn, WeightedSweepIsTheBestOfItsCandidates) {
  const Case c = make_case(24, 96, 200, 15);
  MatrixMethod method;
  method.recipe.rule = nvfp4::Rule::kFullSweep;
  method.weighted = true;
  const QuantizedMatrix q = run(c, method);
  const float enc = nvfp4::scale_top(method.recipe) / c.amax();
  for (int64_t row = 0; row < c.n; ++row) {
    for (int64_t block = 0; block < c.k / kBlock; ++block) {
      float bmax = 0;
      for (int64_t i = block * kBlock; i < (block + 1) * kBlock; ++i)
        bmax = std::max(bmax, std::fabs(c.w[size_t(row * c.k + i)]));
      const int plain = nvfp4::e4m3_encode(bmax / 6.0f * enc);
      double best = std::numeric_limits<double>::infinity();
      for (int code = std::max(plain - 3, 0); code <= std::min(plain + 7, 0x7e); ++code)
        best = std::min(best, block_error(c, row, block, uint8_t(code), enc));
      const uint8_t taken = q.scales[size_t(row * (c.k / kBlock) + block)];
      EXPECT_LE(block_error(c, row, block, taken, enc), best * (1 + 1e-5));
    }
  }
}

// ---- Laws ----

std::vector<float> damped_gram(const Case& c, const MatrixMethod& method) {
  ThreadPool pool(1);
  return Curvature(c.calibration(), method, pool).gram();
}

TEST(Refine, NeverMakesARowWorse) {
  for (const int64_t tokens : {7, 64, 1000}) {
    const Case c = make_case(40, 96, tokens, 16);
    for (const Kind kind : {Kind::kRtn, Kind::kGptq}) {
      MatrixMethod method = gptq(nvfp4::Rule::kSweep);
      method.kind = kind;
      const QuantizedMatrix before = run(c, method);
      double last = loss(c, before, c.gram);
      method.refine = 1;
      const std::vector<float> h = damped_gram(c, method);
      std::vector<double> rows;
      for (int64_t row = 0; row < c.n; ++row) rows.push_back(row_loss(c, before, h, row));
      for (; method.refine <= 4; ++method.refine) {
        const QuantizedMatrix after = run(c, method);
        for (int64_t row = 0; row < c.n; ++row) {
          const double now = row_loss(c, after, h, row);
          EXPECT_LE(now, rows[size_t(row)] * (1 + 1e-4)) << "row " << row;
          rows[size_t(row)] = now;
        }
      }
      EXPECT_LT(loss(c, run(c, method), c.gram), last);
    }
  }
}

TEST(Refine, BeatsGptqAndRounding) {
  const Case c = make_case(64, 128, 1000, 17);
  MatrixMethod rounding;
  rounding.recipe.rule = nvfp4::Rule::kSweep;
  rounding.weighted = true;
  MatrixMethod fed = gptq(nvfp4::Rule::kSweep), best = fed;
  best.refine = 3;
  const double plain = loss(c, run(c, rounding), c.gram), middle = loss(c, run(c, fed), c.gram);
  EXPECT_LT(middle, 0.8 * plain);
  EXPECT_LT(loss(c, run(c, best), c.gram), 0.95 * middle);
}

TEST(Refine, LeavesWhatFitsExactly) {
  Case c = make_case(16, 32, 200, 18);
  for (size_t i = 0; i < c.w.size(); ++i)
    c.w[i] = nvfp4::e2m1_decode(uint32_t(i % 16 == 3 ? 7 : i * 7 % 16));  // each block reaches 6
  MatrixMethod method = gptq(nvfp4::Rule::kStatic6);
  method.refine = 2;
  EXPECT_NEAR(loss(c, run(c, method), c.gram), 0.0, 1e-6);
}

// The kernels of one instruction set on sixteen rows: E2M1 levels, then block scales.
std::vector<float> lanes_result(const LaneKernels& kernels, const Case& c, const Curvature& h) {
  const auto size = size_t(c.k * kLanes);
  std::vector<float> w(size), work(size), levels(size);
  std::vector<uint8_t> scales(size / kBlock);
  for (int64_t i = 0; i < c.k; ++i)
    for (int64_t lane = 0; lane < kLanes; ++lane)
      w[size_t(i * kLanes + lane)] = c.w[size_t(lane * c.k + i)];
  work = w;
  const float amax = c.amax(), top = 1536.0f, enc = top / amax;
  const TensorScale scale{amax, top, enc, 1.0f / enc, amax / top};
  GptqArgs args;
  args.k = c.k;
  args.scale = scale;
  args.rule = nvfp4::Rule::kFullSweep;
  args.factor = h.factor().data();
  args.w = work.data();
  args.levels = levels.data();
  args.scales = scales.data();
  kernels.gptq(args);
  RefineArgs more;
  more.k = c.k;
  more.scale = scale;
  more.sweeps = 2;
  more.gram = h.gram().data();
  more.w = w.data();
  more.levels = levels.data();
  more.scales = scales.data();
  more.gradient = work.data();
  kernels.refine(more);
  levels.insert(levels.end(), scales.begin(), scales.end());
  return levels;
}

TEST(Methods, DoNotDependOnTheInstructionSet) {
  const Case c = make_case(16, 160, 300, 28);
  ThreadPool pool(1);
  const Curvature curvature(c.calibration(), gptq(nvfp4::Rule::kFullSweep), pool);
  const std::vector<float> expected = lanes_result(kLanesPlain, c, curvature);
  EXPECT_EQ(lanes_result(lane_kernels(), c, curvature), expected);
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2")) {
    EXPECT_EQ(lanes_result(kLanesAvx2, c, curvature), expected);
  }
#endif
}

TEST(Methods, DoNotDependOnThreads) {
  const Case c = make_case(75, 112, 300, 19);
  MatrixMethod method = gptq(nvfp4::Rule::kFullSweep);
  method.refine = 2;
  const QuantizedMatrix one = run(c, method, 1), three = run(c, method, 3);
  EXPECT_EQ(one.codes, three.codes);
  EXPECT_EQ(one.scales, three.scales);
}

TEST(Methods, RowsAreIndependent) {
  const Case c = make_case(21, 64, 300, 20);
  MatrixMethod method = gptq(nvfp4::Rule::kSweep);
  method.refine = 2;
  ThreadPool pool(1);
  const Curvature curvature(c.calibration(), method, pool);
  const QuantizedMatrix whole = quantize_matrix(c.view(), c.amax(), &curvature, method, pool);
  for (const int64_t row : {0, 15, 16, 20}) {
    const WeightView view{c.w.data() + row * c.k, 1, c.k};
    const QuantizedMatrix alone = quantize_matrix(view, c.amax(), &curvature, method, pool);
    EXPECT_TRUE(
        std::equal(alone.codes.begin(), alone.codes.end(), whole.codes.begin() + row * c.k / 2));
  }
}

TEST(Shrinkage, MakesHItsDiagonalInTheEnd) {
  const Case c = make_case(4, 48, 200, 32);
  ThreadPool pool(1);
  MatrixMethod method = gptq(nvfp4::Rule::kSweep);
  for (const double shrinkage : {0.0, 0.25, 1.0}) {
    method.shrinkage = shrinkage;
    method.damping = 0;
    const std::vector<float> h = Curvature(c.calibration(), method, pool).gram();
    for (int64_t i = 0; i < c.k; ++i) {
      for (int64_t j = 0; j < c.k; ++j) {
        const float whole = c.gram[size_t(i * c.k + j)];
        const float expected = i == j ? whole : float(1 - shrinkage) * whole;
        EXPECT_FLOAT_EQ(h[size_t(i * c.k + j)], expected);
      }
    }
  }
}

TEST(Shrinkage, AutomaticFallsWithTokensAndNeedsThem) {
  EXPECT_GT(automatic_shrinkage(1536, 4096), automatic_shrinkage(576, 4096));
  EXPECT_GT(automatic_shrinkage(576, 4096), automatic_shrinkage(576, 40960));
  EXPECT_LE(automatic_shrinkage(4096, 1), 0.5);
  const Case c = make_case(4, 48, 200, 33);
  ThreadPool pool(1);
  EXPECT_THAT([&] { Curvature(c.calibration(), best_method(), pool); },
              ThrowsMessage<Error>(HasSubstr("found 0 tokens")));
}

// Few tokens, judged on many: what the sample says too much is left out.
TEST(Shrinkage, HelpsOnInputsThatCalibrationDidNotSee) {
  const Case few = make_case(64, 128, 160, 34);
  Case many = make_case(64, 128, 4000, 34);
  many.gram = make_case(64, 128, 4000, 35).gram;
  MatrixMethod method = gptq(nvfp4::Rule::kSweep);
  const double trusting = loss(many, run(few, method), many.gram);
  method.shrinkage = 0.3;
  EXPECT_LT(loss(many, run(few, method), many.gram), trusting);
}

// ---- Odd inputs ----

TEST(Methods, DeadChannelsAreRoundedAndDisturbNothing) {
  Case c = make_case(16, 64, 300, 21);
  for (int64_t i = 0; i < c.k; ++i) {
    for (const int64_t dead : {0, 17, 63}) {
      c.gram[size_t(i * c.k + dead)] = 0;
      c.gram[size_t(dead * c.k + i)] = 0;
    }
  }
  for (const bool act_order : {false, true}) {
    MatrixMethod method = gptq(nvfp4::Rule::kSweep);
    method.act_order = act_order;
    method.refine = 2;
    const std::vector<float> values = values_of(run(c, method));
    for (int64_t row = 0; row < c.n; ++row)
      for (const int64_t dead : {0, 17, 63})
        EXPECT_NEAR(values[size_t(row * c.k + dead)], c.w[size_t(row * c.k + dead)],
                    0.25f * c.amax());
  }
}

TEST(Methods, NoInputsAtAllIsPlainRounding) {
  Case c = make_case(16, 32, 10, 22);
  std::fill(c.gram.begin(), c.gram.end(), 0.0f);
  MatrixMethod rounding;
  rounding.recipe.rule = nvfp4::Rule::kSweep;
  const QuantizedMatrix plain = run(c, rounding), fed = run(c, gptq(nvfp4::Rule::kSweep));
  EXPECT_EQ(plain.codes, fed.codes);
}

TEST(Methods, FewerTokensThanChannelsNeedDamping) {
  const Case c = make_case(16, 64, 5, 23);
  EXPECT_NO_THROW(run(c, gptq(nvfp4::Rule::kSweep)));
  Case singular = make_case(16, 64, 5, 23);
  for (int64_t i = 0; i < 64; ++i)
    singular.gram[size_t(i * 64 + 3)] = singular.gram[size_t(3 * 64 + i)] = 0;
  MatrixMethod method = gptq(nvfp4::Rule::kSweep);
  method.damping = 0;
  EXPECT_THAT([&] { run(singular, method); },
              ThrowsMessage<Error>(HasSubstr("not positive definite")));
}

TEST(Methods, OneBlockARow) {
  const Case c = make_case(3, 16, 40, 24);
  MatrixMethod method = gptq(nvfp4::Rule::kFourOverSix);
  method.refine = 1;
  const QuantizedMatrix q = run(c, method);
  EXPECT_EQ(q.codes.size(), 24u);
  EXPECT_EQ(q.scales.size(), 3u);
}

TEST(Methods, RowsOfZerosAndNoRows) {
  Case c = make_case(20, 32, 60, 25);
  std::fill(c.w.begin() + 32, c.w.begin() + 96, 0.0f);
  MatrixMethod method = gptq(nvfp4::Rule::kSweep);
  method.refine = 2;
  const QuantizedMatrix q = run(c, method);
  for (size_t i = 16; i < 48; ++i) EXPECT_EQ(q.codes[i], 0);
  for (size_t i = 2; i < 6; ++i) EXPECT_EQ(q.scales[i], 0);
  std::fill(c.w.begin(), c.w.end(), 0.0f);
  EXPECT_EQ(run(c, method).multiplier, 0.0f);
  ThreadPool pool(1);
  const Curvature curvature(c.calibration(), method, pool);
  EXPECT_TRUE(quantize_matrix({nullptr, 0, 32}, 1.0f, &curvature, method, pool).codes.empty());
}

TEST(Methods, RefuseBadInputWithAName) {
  Case c = make_case(4, 32, 60, 26);
  const MatrixMethod method = gptq(nvfp4::Rule::kSweep);
  ThreadPool pool(1);
  const Curvature curvature(c.calibration(), method, pool);
  const auto quantize = [&](const WeightView& w, float amax, const MatrixMethod& how) {
    return [&, w, amax, how] { quantize_matrix(w, amax, &curvature, how, pool); };
  };
  std::vector<float> odd(96, 1.0f);
  EXPECT_THAT(quantize({odd.data(), 4, 24}, 1, method),
              ThrowsMessage<Error>(HasSubstr("rows of 24 weights, expected a multiple of 16")));
  EXPECT_THAT(quantize({odd.data(), 2, 48}, 1, method),
              ThrowsMessage<Error>(HasSubstr("48 weights and calibration of 32 channels")));
  EXPECT_THAT(quantize(c.view(), INFINITY, method), ThrowsMessage<Error>(HasSubstr("amax inf")));
  MatrixMethod rotated = method;
  rotated.recipe.hadamard = true;
  EXPECT_THAT(quantize(c.view(), 1, rotated), ThrowsMessage<Error>(HasSubstr("rotation")));
  MatrixMethod wide = method;
  wide.beam = 3;
  EXPECT_THAT([&] { Curvature(c.calibration(), wide, pool); },
              ThrowsMessage<Error>(HasSubstr("beam: found 3, expected a power of two")));
  c.w[37] = NAN;
  EXPECT_THAT(quantize(c.view(), 1, method),
              ThrowsMessage<Error>(HasSubstr("found nan in row 1, column 5")));
  EXPECT_THAT([&] { quantize_matrix(c.view(), 1, nullptr, method, pool); },
              ThrowsMessage<Error>(HasSubstr("found no calibration")));
  c.gram[5 * 32 + 5] = -1;
  EXPECT_THAT([&] { Curvature(c.calibration(), method, pool); },
              ThrowsMessage<Error>(HasSubstr("for channel 5")));
}

}  // namespace
}  // namespace longspur::quant
