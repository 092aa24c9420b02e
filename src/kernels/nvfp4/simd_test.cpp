// Every instruction set against the reference, bit for bit.
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <numeric>
#include <sstream>

#include "base/half.h"
#include "base/rng.h"
#include "kernels/nvfp4/api.h"
#include "kernels/nvfp4/codec.h"
#include "kernels/nvfp4/nvfp4_cases.h"

namespace longspur::kernels::nvfp4 {
namespace {

constexpr Rule kRules[] = {Rule::kStatic6, Rule::kStatic4, Rule::kFourOverSix, Rule::kSweep,
                           Rule::kFullSweep};
constexpr Metric kMetrics[] = {Metric::kMse, Metric::kMae, Metric::kAbsMax};

// A matrix with every kind of block: ordinary, tiny, huge, zero, constant, with NaN or infinity.
struct Problem {
  int64_t rows, k, ld;
  DType dtype;
  bool transposed;
  std::vector<float> words;
  std::vector<uint16_t> halves;
  std::vector<float> amax, importance;

  Source source() const {
    const void* x = dtype == DType::kF32 ? static_cast<const void*>(words.data()) : halves.data();
    return {x, dtype, rows, k, ld, transposed};
  }
};

float wild(Noise& noise, int64_t block) {
  const float x = noise.next();
  switch (block % 9) {
    case 1:
      return 0.0f;
    case 2:
      return x * 1e-6f;
    case 3:
      return x * x * x * 3000;
    case 4:
      return 0.75f;
    case 5:
      return std::ldexp(x, int(noise.bits() % 60) - 50);
    case 6:
      return float(int(noise.bits() % 25) - 12) * 0.5f;  // many ties
    case 7:
      return block % 4 == 3 && noise.bits() % 8 == 0 ? NAN : x;
    case 8:
      return block % 8 == 0 && noise.bits() % 8 == 0 ? -INFINITY : -x * 4;
    default:
      return x;
  }
}

Problem make_problem(int64_t rows, int64_t k, DType dtype, bool transposed, uint64_t seed) {
  Problem p{rows, k, (transposed ? rows : k) + 3, dtype, transposed, {}, {}, {}, {}};
  Noise noise(seed);
  const int64_t size = p.ld * (transposed ? k : rows);
  p.words.assign(size_t(size), 0.0f);
  p.halves.assign(size_t(size), 0);
  p.amax.assign(size_t(rows), 0.0f);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < k; ++c) {
      const float x = wild(noise, r * (k / 16) + c / 16 + int64_t(seed));
      const size_t at = size_t(transposed ? c * p.ld + r : r * p.ld + c);
      p.words[at] = x;
      p.halves[at] = dtype == DType::kBF16 ? float_to_bf16(x) : float_to_fp16(x);
    }
    const float spread[] = {3000, 1, 2.5f, 0, 1e-38f, 1e30f, 0.3f, INFINITY, 1e-41f, 448};
    p.amax[size_t(r)] = r == 0 ? 3001.0f : spread[noise.bits() % 10];
  }
  for (int64_t c = 0; c < k; ++c)
    p.importance.push_back(c % 7 == 0 ? 0.0f : std::fabs(noise.next()) * 10);
  return p;
}

std::string described(const QuantizeArgs& args) {
  std::ostringstream out;
  const Recipe& r = args.recipe;
  out << rule_name(r.rule) << ' ' << metric_name(r.metric) << ' ' << rounding_name(r.rounding)
      << " bound " << r.bound << " tile " << r.tile_2d << " hadamard " << r.hadamard << " per row "
      << args.amax_per_row << " weighted " << (args.importance != nullptr) << " rows "
      << args.source.rows << " k " << args.source.k << " type " << int(args.source.dtype)
      << " transposed " << args.source.transposed;
  return out.str();
}

TEST(Simd, EqualsTheReferenceBitForBit) {
  uint64_t seed = 0;
  for (const Rule rule : kRules) {
    for (const Metric metric : kMetrics) {
      for (int flags = 0; flags < 64; ++flags) {
        const bool tile = flags & 1, transposed = flags & 2, per_row = flags & 4;
        ++seed;
        const DType dtype = seed % 3 == 0   ? DType::kF32
                            : seed % 3 == 1 ? DType::kBF16
                                            : DType::kF16;
        const int64_t rows = tile ? 32 : 1 + int64_t(seed % 5);
        const Problem p = make_problem(rows, 16 * int64_t(1 + seed % 13), dtype, transposed, seed);
        QuantizeArgs args;
        args.source = p.source();
        args.amax = p.amax.data();
        args.amax_per_row = per_row;
        args.importance = flags & 8 ? p.importance.data() : nullptr;
        args.recipe = {rule,
                       metric,
                       tile,
                       Rounding(seed / 7 % 3),
                       seed,
                       std::array{0, 256, 448}[seed / 5 % 3],
                       (flags & 16) != 0};
        if (flags & 32) args.recipe.rounding = Rounding::kNearest;
        SCOPED_TRACE(described(args));
        ASSERT_NO_FATAL_FAILURE(expect_same_on_all(args));
      }
    }
  }
}

// The quotient by `top` from its reciprocal is the processor's for every mantissa.
TEST(Simd, DivisionByReciprocalIsExact) {
  for (const Rule rule : {Rule::kStatic6, Rule::kStatic4}) {
    for (const int bound : {256, 448}) {
      for (const Rounding rounding : {Rounding::kNearest, Rounding::kStochasticUnbiased}) {
        Recipe recipe;
        recipe.rule = rule;
        recipe.bound = bound;
        recipe.rounding = rounding;
        const float top = scale_top(recipe), reciprocal = 1.0f / top;
        int64_t wrong = 0;
        for (uint32_t mantissa = 0; mantissa < 1u << 23; ++mantissa) {
          const float x = std::bit_cast<float>(0x3f800000u | mantissa);
          const float quotient = x * reciprocal;
          wrong += std::fma(std::fma(-quotient, top, x), reciprocal, quotient) != x / top;
        }
        EXPECT_EQ(wrong, 0) << top;
      }
    }
  }
}

TEST(Simd, AnyDivisionOfTheRows) {
  const Problem p = make_problem(48, 80, DType::kBF16, false, 99);
  for (const bool tile : {false, true}) {
    QuantizeArgs args;
    args.source = p.source();
    args.amax = p.amax.data();
    args.amax_per_row = true;
    args.recipe.tile_2d = tile;
    args.recipe.rounding = Rounding::kStochastic;
    const Quantized whole = quantized("reference", args);
    for (const std::string& path : paths()) {
      Quantized parts{Quantized{std::vector<uint8_t>(whole.codes.size()),
                                std::vector<uint8_t>(whole.scales.size())}};
      args.codes = parts.codes.data();
      args.scales = parts.scales.data();
      for (const auto& [begin, end] :
           tile ? std::vector<std::pair<int, int>>{{16, 48}, {0, 16}}
                : std::vector<std::pair<int, int>>{{47, 48}, {0, 1}, {1, 18}, {18, 47}})
        quantize_on(path, args, begin, end);
      EXPECT_EQ(parts, whole) << path;
    }
  }
}

// Bits of one value, or two halves, with every NaN made the same.
uint32_t one_nan(uint32_t bits, DType dtype) {
  if (dtype == DType::kF32) return (bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc00000u : bits;
  const uint32_t infinity = dtype == DType::kBF16 ? 0x7f80u : 0x7c00u;
  uint32_t out = 0;
  for (const int shift : {0, 16}) {
    const uint32_t half = bits >> shift & 0xffffu;
    out |= ((half & 0x7fffu) > infinity ? 0x7fffu : half) << shift;
  }
  return out;
}

TEST(Simd, DequantizeEqualsTheReference) {
  constexpr int64_t kRows = 5, kK = 48;
  Noise noise(5);
  std::vector<uint8_t> codes(kRows * kK / 2), scales(kRows * kK / 16);
  for (uint8_t& byte : codes) byte = uint8_t(noise.bits());
  for (uint8_t& byte : scales) byte = uint8_t(noise.bits());  // signs are ignored, 7f is a NaN
  scales[2] = kE4m3Nan;
  const float multipliers[kRows] = {0.37f, 0.0f, 1e30f, 1e-40f, NAN};
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
    for (const bool per_row : {false, true}) {
      std::vector<uint32_t> expected(kRows * kK), found(kRows * kK);
      DequantizeArgs args{codes.data(), scales.data(), multipliers,    per_row, kRows,
                          kK,           dtype,         expected.data()};
      dequantize_ref(args, 0, kRows);
      for (const std::string& path : paths()) {
        std::fill(found.begin(), found.end(), 0);
        args.out = found.data();
        dequantize_on(path, args, 3, kRows);
        dequantize_on(path, args, 0, 3);
        for (size_t i = 0; i < found.size(); ++i)
          ASSERT_EQ(one_nan(found[i], dtype), one_nan(expected[i], dtype))
              << path << " type " << int(dtype) << " at " << i;
      }
    }
  }
}

TEST(Simd, LargestMagnitude) {
  for (const bool transposed : {false, true}) {
    for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
      Problem p = make_problem(37, 48, dtype, transposed, 7);
      for (const bool hadamard : {false, true}) {
        std::vector<float> expected;
        for (int64_t r = 0; r < p.rows; ++r) {
          float row = 0;
          for (int64_t c = 0; c < p.k; c += 16) {
            float block[16];
            for (int64_t i = 0; i < 16; ++i) {
              const size_t at = size_t(transposed ? (c + i) * p.ld + r : r * p.ld + c + i);
              block[i] = dtype == DType::kF32    ? p.words[at]
                         : dtype == DType::kBF16 ? bf16_to_float(p.halves[at])
                                                 : fp16_to_float(p.halves[at]);
            }
            if (hadamard) hadamard16(block);
            for (const float x : block)
              row = std::isnan(row) || !std::isfinite(x) ? NAN : std::max(row, std::fabs(x));
          }
          expected.push_back(row);
        }
        for (const std::string& path : paths()) {
          if (path == "reference") continue;
          limit_isa(path);
          std::vector<float> found(size_t(p.rows));
          EXPECT_TRUE(std::isnan(max_magnitude(p.source(), hadamard, 0, p.rows, found.data())));
          for (size_t r = 0; r < found.size(); ++r) {
            if (std::isnan(expected[r]))
              EXPECT_TRUE(std::isnan(found[r])) << path << " row " << r;
            else
              EXPECT_EQ(found[r], expected[r]) << path << " row " << r;
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace longspur::kernels::nvfp4
