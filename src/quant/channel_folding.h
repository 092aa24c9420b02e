// Channel scales of a whole layer: searched for each product and folded, so that the layer computes
// what it did. The product's columns are multiplied by s; what makes its input is divided: the norm
// before q, k, v and gate, up; the rows of v before output (query heads that share a value head
// share scales); the rows of up before down.
#pragma once

#include "io/files/model_config.h"
#include "quant/calibration.h"
#include "quant/convert_layer.h"

namespace longspur::quant {

// Changes weights and statistics alike, and returns each site's scales; options.scales says how to
// search.
std::array<std::vector<float>, kSites> fold_channel_scales(const io::ModelConfig& config,
                                                           const ConvertOptions& options,
                                                           LayerWeights& weights,
                                                           LayerStats& stats,
                                                           ThreadPool& pool);

// One product's scales [K], all positive. Exposed for tests.
void fold_site(const io::ModelConfig& config,
               Site site,
               const std::vector<float>& scale,
               LayerWeights& weights,
               InputStats& stats);

}  // namespace longspur::quant
