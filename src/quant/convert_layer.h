// One decoder layer to NVFP4: its linear layers, chosen method by method, and what that costs.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <vector>

#include "io/files/model_config.h"
#include "quant/calibration.h"
#include "quant/channel_scales.h"
#include "quant/float_layer.h"
#include "quant/matrix.h"

namespace longspur::quant {

// How the linear layers of a decoder layer are converted.
struct ConvertOptions {
  MatrixMethod matrix;
  // First move difficulty between weights and inputs: channel scales, folded into norms and into
  // the rows of v and up.
  std::optional<ChannelScaleSearch::Kind> scales;
  // The recipe that inputs are rounded with at run time, for the search of scales; null: not.
  const kernels::nvfp4::Recipe* activations = nullptr;
  // In sequential conversion: how far the weights go towards making up for what the layers before
  // have lost (retarget.h), 0 .. 1. Not with `scales`.
  double retarget = 0.0;
};

// What conversion did to a matrix. Errors are relative: sum (Q - W)^2 / sum W^2, and
// tr(E H E^T) / tr(W H W^T) with H = X^T X of the calibration text (0 without).
struct MatrixReport {
  double weight_error = 0, output_error = 0;
  double squared_error = 0, squares = 0;  // numerator and denominator of weight_error
  double share_of_4 = 0;  // blocks whose largest magnitude is 4 or less, of those not zero
};

struct ConvertedMatrix {
  bool kept = false;  // in high precision: `values`; else `nvfp4`
  QuantizedMatrix nvfp4;
  Matrix values;
  float input_multiplier = 0.0f;  // largest input / 2688 on the calibration text; 0: none seen
  MatrixReport report;
};

struct ConvertedLayer {
  std::array<ConvertedMatrix, kRoles> linear;
  std::array<std::vector<float>, kRoles> bias;
  std::vector<float> attn_norm, ffn_norm, q_norm, k_norm;
  std::array<std::vector<float>, kSites> channel_scales;  // folded in already; empty: none
};

using KeptSites = std::array<bool, kSites>;

// stats: null without calibration text. Matrices of one site share a multiplier.
ConvertedLayer convert_layer(const io::ModelConfig& config,
                             const LayerWeights& weights,
                             const LayerStats* stats,
                             const ConvertOptions& options,
                             const KeptSites& kept,
                             ThreadPool& pool);

// One site of the layer, from `targets` (the weights themselves, or changed ones to quantise in
// their place); the multiplier and the report are about `weights`.
void convert_site(const LayerWeights& weights,
                  const LayerWeights& targets,
                  Site site,
                  const InputStats* stats,
                  const MatrixMethod& method,
                  ThreadPool& pool,
                  ConvertedLayer& result);
// Leaves the site's matrices in high precision.
void keep_site(const LayerWeights& weights, Site site, ConvertedLayer& result);
// A matrix as it will compute.
Matrix values_of(const ConvertedMatrix& matrix, ThreadPool& pool);

// The layer with its channel scales taken out again: matrix by matrix comparable to the original.
LayerWeights read_back_unfolded(const io::ModelConfig& config,
                                const ConvertedLayer& layer,
                                ThreadPool& pool);

// The layer as it will compute: quantised matrices read back.
LayerWeights read_back(const ConvertedLayer& layer, ThreadPool& pool);

}  // namespace longspur::quant
