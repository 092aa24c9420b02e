// For tests of quantisation on a device: matrices on both sides, what the reference makes of them,
// and calls into poisoned places.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "base/half.h"
#include "base/rng.h"
#include "kernels/common/cuda/device_test.cuh"
#include "kernels/nvfp4/codec.h"
#include "kernels/nvfp4/cuda/quantize.h"

namespace longspur::kernels::nvfp4::cuda {
using testing::DeviceArray;
inline constexpr uint8_t kPoison = 0xa5;

struct Matrix {
  DType dtype = DType::kF32;
  int64_t rows = 0, k = 0, ld = 0;  // of the logical matrix; ld of what is stored
  bool transposed = false;
  std::vector<uint8_t> bytes;
  Source on(const void* x) const { return {x, dtype, rows, k, ld, transposed}; }
  Source host() const { return on(bytes.data()); }
};

// Element at `at` of the stored matrix.
inline void put(Matrix& m, int64_t at, float value) {
  if (m.dtype == DType::kF32) {
    std::memcpy(&m.bytes[size_t(at) * 4], &value, 4);
  } else {
    const uint16_t bits = m.dtype == DType::kBF16 ? float_to_bf16(value) : float_to_fp16(value);
    std::memcpy(&m.bytes[size_t(at) * 2], &bits, 2);
  }
}
inline float get(const Matrix& m, int64_t at) {
  if (m.dtype == DType::kF32) {
    float value;
    std::memcpy(&value, &m.bytes[size_t(at) * 4], 4);
    return value;
  }
  uint16_t bits;
  std::memcpy(&bits, &m.bytes[size_t(at) * 2], 2);
  return m.dtype == DType::kBF16 ? bf16_to_float(bits) : fp16_to_float(bits);
}
inline float element(const Matrix& m, int64_t row, int64_t k) {
  return get(m, m.transposed ? k * m.ld + row : row * m.ld + k);
}

// Normal numbers whose size differs between rows, blocks of zeros, of whole numbers and outliers.
inline Matrix make_matrix(
    DType dtype, int64_t rows, int64_t k, int64_t pad, bool transposed, unsigned seed) {
  Matrix m{dtype, rows, k, (transposed ? rows : k) + pad, transposed, {}};
  m.bytes.assign(size_t((transposed ? k : rows) * m.ld * (dtype == DType::kF32 ? 4 : 2)), 0x7f);
  const auto values = testing::random_floats(size_t(rows * k), seed);
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t i = 0; i < k; ++i) {
      float x = values[size_t(row * k + i)] * std::exp2(float(row % 7 - 3));
      const int64_t block = row * 31 + i / kBlock;
      if (block % 11 == 3) x = 0;
      if (block % 13 == 5) x = std::round(4 * x);
      if (block % 17 == 7) x *= 1e-4f;
      if (block % 97 == 1 && i % kBlock == 3) x = 300;
      put(m, transposed ? i * m.ld + row : row * m.ld + i, x);
    }
  }
  return m;
}

struct Result {
  std::vector<uint8_t> codes, scales;
  std::vector<float> multiplier;
};

inline std::vector<float> amax_of(const Matrix& m, const Recipe& recipe, bool by_row) {
  std::vector<float> amax(size_t(by_row ? m.rows : 1), 0.0f);
  const int64_t group = recipe.tile_2d ? kBlock : 1;
  for (int64_t row = 0; row < m.rows; ++row) {
    float& most = amax[size_t(by_row ? row / group * group : 0)];
    for (int64_t k = 0; k < m.k; k += kBlock) {
      float x[kBlock];
      for (int i = 0; i < kBlock; ++i) x[i] = element(m, row, k + i);
      if (recipe.hadamard) hadamard16(x);
      for (const float v : x) {
        if (!std::isfinite(v)) most = NAN;
        if (std::fabs(v) > most) most = std::fabs(v);
      }
    }
  }
  for (size_t i = 0; by_row && i < amax.size(); ++i)
    amax[i] = amax[i / size_t(group) * size_t(group)];
  return amax;
}

inline Result reference(const Matrix& m,
                        const Recipe& recipe,
                        const std::vector<float>& amax,
                        const std::vector<float>& importance = {}) {
  Result r{std::vector<uint8_t>(size_t(m.rows * m.k / 2)),
           std::vector<uint8_t>(size_t(m.rows * m.k / kBlock)),
           {}};
  nvfp4::QuantizeArgs args;
  args.source = m.host();
  args.amax = amax.data();
  args.amax_per_row = amax.size() > 1;
  args.importance = importance.empty() ? nullptr : importance.data();
  args.recipe = recipe;
  args.codes = r.codes.data();
  args.scales = r.scales.data();
  quantize_ref(args, 0, m.rows);
  for (size_t i = 0; i < amax.size(); ++i) {
    const size_t from = recipe.tile_2d ? i / kBlock * kBlock : i;
    r.multiplier.push_back(tensor_scale(amax[from], recipe));
  }
  return r;
}

// Device copies of a result's places, poisoned.
struct Places {
  Places(int64_t rows, int64_t k, int64_t multipliers, bool swizzled)
      : columns(k / kBlock),
        rows(rows),
        swizzled(swizzled),
        codes(std::vector<uint8_t>(size_t(rows * k / 2 + 8), kPoison)),
        scales(std::vector<uint8_t>(
            size_t((swizzled ? swizzled_scale_bytes(rows, columns) : rows * columns) + 1),
            kPoison)),
        multiplier(std::vector<float>(size_t(multipliers + 1), -7.0f)) {}
  Quantized out() const { return {codes.get(), scales.get(), multiplier.get(), swizzled}; }

  // What was written, scales in row-major order; checks that nothing else was, and the padding.
  Result result() const {
    Result r{codes.download(), {}, multiplier.download()};
    auto stored = scales.download();
    EXPECT_EQ(stored.back(), kPoison);
    EXPECT_EQ(r.multiplier.back(), -7.0f);
    EXPECT_TRUE(
        std::all_of(r.codes.end() - 8, r.codes.end(), [](uint8_t b) { return b == kPoison; }));
    r.codes.resize(r.codes.size() - 8);
    r.multiplier.pop_back();
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t c = 0; c < columns; ++c) {
        uint8_t& s =
            stored[size_t(swizzled ? swizzled_scale_offset(row, c, columns) : row * columns + c)];
        r.scales.push_back(s);
        if (swizzled) s = 0;
      }
    }
    stored.pop_back();
    if (swizzled) {
      EXPECT_EQ(stored, std::vector<uint8_t>(stored.size(), 0)) << "padding";
    }
    return r;
  }

  int64_t columns, rows;
  bool swizzled;
  DeviceArray<uint8_t> codes, scales;
  DeviceArray<float> multiplier;
};

struct Call {
  Recipe recipe;
  Amax amax_from = Amax::kRow;
  bool amax_per_row = false, importance = false, swizzled = false, strict = true;
};

inline std::string describe(const Matrix& m, const Call& run) {
  return std::string(rule_name(run.recipe.rule)) + " " +
         std::string(metric_name(run.recipe.metric)) + " " +
         std::string(rounding_name(run.recipe.rounding)) + " dtype " +
         std::to_string(int(m.dtype)) + " " + std::to_string(m.rows) + "x" + std::to_string(m.k) +
         (m.transposed ? " transposed" : "") + (run.recipe.tile_2d ? " tiles" : "") +
         (run.recipe.hadamard ? " rotated" : "") + " amax " + std::to_string(int(run.amax_from)) +
         (run.amax_per_row ? " by row" : "") + (run.importance ? " weighed" : "") +
         (run.swizzled ? " swizzled" : "");
}

inline std::vector<float> importance_of(int64_t k) {
  auto weights = testing::random_floats(size_t(k), 5);
  for (float& w : weights) w = w * w;
  return weights;
}

inline Result on_device(const Matrix& m, const Call& run, const std::vector<float>& amax) {
  const DeviceArray<uint8_t> x(m.bytes);
  const DeviceArray<float> given(amax), weights(importance_of(m.k));
  Places places(m.rows, m.k, int64_t(amax.size()), run.swizzled);
  Quantize args;
  args.source = m.on(x.get());
  args.recipe = run.recipe;
  args.amax_from = run.amax_from;
  if (run.amax_from == Amax::kGiven) args.amax = given.get();
  args.amax_per_row = run.amax_per_row;
  args.importance = run.importance ? weights.get() : nullptr;
  args.strict = run.strict;
  args.out = places.out();
  const DeviceArray<uint8_t> workspace(
      std::vector<uint8_t>(size_t(workspace_bytes(args)), kPoison));
  EXPECT_EQ(quantize(args, workspace.get(), nullptr), nullptr);
  return places.result();
}

inline bool same(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::equal(a.begin(), a.end(), b.begin(), [](float x, float y) {
           return x == y || (std::isnan(x) && std::isnan(y));
         });
}

inline void expect_equal(const Result& found, const Result& expected, const std::string& what) {
  const auto differing = [](const auto& a, const auto& b) {
    size_t n = 0;
    for (size_t i = 0; i < a.size(); ++i) n += a[i] != b[i];
    return n;
  };
  ASSERT_EQ(found.codes.size(), expected.codes.size()) << what;
  EXPECT_EQ(differing(found.scales, expected.scales), 0u) << what << ": scales";
  EXPECT_EQ(differing(found.codes, expected.codes), 0u) << what << ": codes";
  EXPECT_TRUE(same(found.multiplier, expected.multiplier)) << what << ": multiplier";
}

inline void check(const Matrix& m, const Call& run) {
  const bool by_row =
      run.amax_from == Amax::kRow || (run.amax_from == Amax::kGiven && run.amax_per_row);
  auto amax = amax_of(m, run.recipe, by_row);
  if (run.amax_from == Amax::kGiven) amax[0] *= 0.75f;  // some values lie above it
  const auto weights = run.importance ? importance_of(m.k) : std::vector<float>{};
  expect_equal(on_device(m, run, amax), reference(m, run.recipe, amax, weights), describe(m, run));
}

inline constexpr Rule kRules[] = {Rule::kStatic6, Rule::kStatic4, Rule::kFourOverSix, Rule::kSweep,
                                  Rule::kFullSweep};
inline constexpr Metric kMetrics[] = {Metric::kMse, Metric::kMae, Metric::kAbsMax};
}  // namespace longspur::kernels::nvfp4::cuda
