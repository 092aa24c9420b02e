// Scales a channel that move difficulty between a product's weights and its inputs: the product
// computes (W diag(s)) (x / s), and 1 / s is folded into whatever makes x (a norm's weight, the
// rows of a linear layer).
//
//   AWQ          s = mean|x|^a
//   SmoothQuant  s = max|x|^a / max|W|^(1 - a)
// (each divided by its geometric mean, which the block and tensor scales would absorb)
// with a from a grid, by the error of the product's output on a sample of the calibration text,
// computed with weights (and inputs, for W4A4) rounded as they will be.
//
// Sources: Lin et al., "AWQ", arXiv 2306.00978; Xiao et al., "SmoothQuant", arXiv 2211.10438.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "quant/matrix.h"

namespace longspur::quant {

struct ChannelScaleSearch {
  enum class Kind { kAwq, kSmoothQuant };
  Kind kind = Kind::kAwq;
  int steps = 20;                  // a = 0, 1 / steps, .. (smooth: 1 / steps .. ), 1
  kernels::nvfp4::Recipe weights;  // how the weights will be rounded
  const kernels::nvfp4::Recipe* activations = nullptr;  // and the inputs; null: not (W4A16)
};

struct ChannelInputs {
  int64_t k = 0, rows = 0;
  const float* sample = nullptr;  // [rows, K] inputs from the calibration text (some hundred rows)
  const float* mean = nullptr;    // [K] a measure of size for AWQ: mean |x| or its root mean square
  const float* absmax = nullptr;  // [K] max |x|
  // Channels with equal entries must get equal scales (value heads shared by query heads): [K], or
  // empty.
  std::span<const int32_t> tied;
};

struct ChannelScales {
  std::vector<float> scale;  // [K]; all 1 when no exponent beats leaving things as they are
  double alpha = 0.0;
  double error = 0.0, plain_error = 0.0;  // relative squared error of the output, with and without
};

// linears: the matrices that read this input; they share a multiplier. Throws Error on shapes that
// do not agree.
ChannelScales search_channel_scales(std::span<const WeightView> linears,
                                    const ChannelInputs& inputs,
                                    const ChannelScaleSearch& search,
                                    ThreadPool& pool);

}  // namespace longspur::quant
