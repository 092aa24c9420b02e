// Quantisation to NVFP4: which E4M3 scale each block of 16 gets, and the codes that follow. CPU.
//
// Encode factor Enc = top / amax with top = 6 * bound (4 * 448 for static_4), Dec = 1 / Enc, all
// fp32 and each operation rounded on its own. For a block with largest magnitude bmax,
// b = (bmax / 6) * Enc:
//   static_6       s = E4M3(b)                      bound 448
//   static_4       s = E4M3((bmax / 4) * Enc)       top 1792
//   four_over_six  E4M3(b) or E4M3(b * 1.5)         bound 256 (448 on request, saturating)
//   sweep          code of E4M3(b) + {0, -1, +1, +4, +5}, within 0 .. 0x7e       bound 256
//   full_sweep     code of E4M3(b) + {0, -3, -2, -1, +1, .. , +7}, likewise      bound 256
// Codes are E2M1(x * (1 / (Dec * s))), zero where s is zero. Of several candidates the first with
// the strictly smallest error between ((q * s) * amax) / top and x wins: so 6 wins ties against 4.
// Errors are sums over the block in order of the elements (fp32), or the maximum.
//
// Stored: codes [rows, K / 2], scales [rows, K / 16] (E4M3), and one multiplier amax / top for the
// tensor or each row. Any reader that multiplies the three reads the result, whatever the rule.
//
// Zero: amax = 0 gives codes, scales and multiplier 0; a block of zeros or one whose scale rounds
// to zero gives codes and scale 0. Tiny amax: Enc is at most the largest float. Not finite: a block
// with a NaN or an infinity gets scale byte 0x7f and codes 0; an amax that is not finite makes
// every such multiplier NaN: it reads back as NaN, never as a number.
//
// Sources: Cook et al., "Four Over Six", arXiv 2512.02010; arXiv 2509.25149 (format, 2-D blocks,
// stochastic rounding, Hadamard); "ScaleSweep", arXiv 2606.07618 (codes around the plain scale).
#pragma once

#include <cstdint>
#include <string_view>

#include "base/dtype.h"

namespace longspur::kernels::nvfp4 {

enum class Rule { kStatic6, kStatic4, kFourOverSix, kSweep, kFullSweep };
enum class Metric { kMse, kMae, kAbsMax };
// Stochastic: to one of the two neighbours with the probability that makes the mean right; the
// scale is chosen first, by the error of rounding to the nearest. Unbiased: block scales as ever,
// but elements are encoded with 16/17 of the rule's top, so that a block scale rounded down (by
// 1/17 at most) never clips the block's maximum.
enum class Rounding { kNearest, kStochastic, kStochasticUnbiased };

// "static_6", "static_4", "four_over_six", "sweep", "full_sweep"; "mse", "mae", "abs_max";
// "nearest", "stochastic", "stochastic_unbiased". The parsers throw UsageError on other names.
Rule parse_rule(std::string_view name);
Metric parse_metric(std::string_view name);
Rounding parse_rounding(std::string_view name);
std::string_view rule_name(Rule rule);
std::string_view metric_name(Metric metric);
std::string_view rounding_name(Rounding rounding);

struct Recipe {
  Rule rule = Rule::kFourOverSix;
  Metric metric = Metric::kMse;
  bool tile_2d = false;  // one scale a 16 x 16 tile, stored for each of its rows
  Rounding rounding = Rounding::kNearest;
  uint64_t seed = 0;      // of stochastic rounding; the counter is row * K + k
  int bound = 0;          // largest block scale aimed at: 256, 448, or 0 for the rule's own
  bool hadamard = false;  // rotate each block of 16 first (hadamard16), before amax is taken
};

// top of the formulas above: that of the block scales, b = (bmax / 6) * (target / amax), and that
// of the elements, Dec = amax / top and the stored multiplier; they differ for kStochasticUnbiased
// only.
float scale_target(const Recipe& recipe);
float scale_top(const Recipe& recipe);
// The stored multiplier amax / top; 0 for amax = 0, NaN for an amax that is not finite.
float tensor_scale(float amax, const Recipe& recipe);

// A matrix to quantise, [rows, K], K a multiple of 16 (and rows of 16 for tile_2d); rows at stride
// ld. transposed: x is stored as [K, rows] with K-rows at stride ld, and blocks run down its
// columns.
struct Source {
  const void* x = nullptr;
  DType dtype = DType::kF32;  // kF32, kBF16 or kF16
  int64_t rows = 0, k = 0, ld = 0;
  bool transposed = false;
};

struct QuantizeArgs {
  Source source;
  const float* amax = nullptr;  // [1], or [rows] when amax_per_row
  bool amax_per_row = false;
  const float* importance = nullptr;  // [K] or null: weighs each element's error (diag X^T X)
  Recipe recipe;
  uint8_t* codes = nullptr;   // [rows, K / 2]
  uint8_t* scales = nullptr;  // [rows, K / 16]
};

// Largest magnitude of rows [begin, end), after the rotation if the recipe has one; NaN when any
// element is not finite. row_amax: [end - begin], or null.
float max_magnitude(
    const Source& source, bool hadamard, int64_t begin, int64_t end, float* row_amax);

// Rows [begin, end); begin and end multiples of 16 for tile_2d. Any division of the rows gives the
// same result. Checks nothing.
void quantize(const QuantizeArgs& args, int64_t begin, int64_t end);

struct DequantizeArgs {
  const uint8_t* codes = nullptr;     // [rows, K / 2]
  const uint8_t* scales = nullptr;    // [rows, K / 16]
  const float* multiplier = nullptr;  // [1], or [rows] when multiplier_per_row
  bool multiplier_per_row = false;
  int64_t rows = 0, k = 0;
  DType dtype = DType::kF32;  // of out: kF32, kBF16 or kF16
  void* out = nullptr;        // [rows, K]
};
// (e2m1 * e4m3) * multiplier, the first product exact, the second rounded to fp32, then to dtype.
void dequantize(const DequantizeArgs& args, int64_t begin, int64_t end);

// y = x * diag(sign) * H / 4, in fp32, in place, for 16 elements; H is Sylvester's Hadamard matrix,
// sign the fixed pattern + + + - + - - - - - - + - + - -. The result is rounded to bf16.
void hadamard16(float* x);

// The slow, obvious versions, the oracle of the tests.
void quantize_ref(const QuantizeArgs& args, int64_t begin, int64_t end);
void dequantize_ref(const DequantizeArgs& args, int64_t begin, int64_t end);

// The instruction set in use; limit_isa is for tests and throws Error on an unknown name.
std::string_view active_isa();
void limit_isa(std::string_view isa);

}  // namespace longspur::kernels::nvfp4
