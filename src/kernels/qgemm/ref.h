// The slow, obvious products that tests compare with: everything in double, weights dequantised
// from the stored bytes by the formats' own formulas.
#pragma once

#include <vector>

#include "kernels/qgemm/api.h"

namespace longspur::kernels::qgemm::ref {

struct Weights {
  int64_t n, k;
  std::vector<double> value;      // [N, K]
  std::vector<double> magnitude;  // [N, K], |d * q| + |m|: what rounding errors are relative to
};

Weights dequantize(const WeightRows& rows);

// The transformed input, [T, K].
std::vector<double> transform(const MatmulArgs& args, int64_t k);

// Quantised input: code * scale with the scale in fp32, for values that are fp32.
struct Codes {
  std::vector<double> value;  // [T, K]
  std::vector<double> scale;  // [T, K], of the element's block
};
Codes quantize(const std::vector<double>& x, ActPrecision precision);

// What the codes of kNvfp4 stand for, by nvfp4::quantize_ref. x: [T, K]
std::vector<double> quantize_nvfp4(const std::vector<float>& x, int64_t k, nvfp4::Rule rule);

}  // namespace longspur::kernels::qgemm::ref
