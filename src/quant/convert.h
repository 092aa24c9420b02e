// A whole decoder to NVFP4, layer by layer: the memory is that of one layer, its statistics and the
// calibration text's activations. Several conversions of one model share the pass over the text.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "quant/convert_layer.h"
#include "quant/float_decoder.h"

namespace longspur::quant {

struct Conversion {
  ConvertOptions options;
  // Statistics from the activations that what is quantised so far gives, product by product, not
  // from the original model's.
  bool sequential = false;
  std::vector<KeptSites> kept;  // of each layer; empty: everything is quantised
};

// Takes conversion `conversion`'s layer `layer`, made from `original`; layers come in order.
using LayerSink = std::function<void(
    size_t conversion, size_t layer, const LayerWeights& original, ConvertedLayer&& converted)>;
// Called between steps; may throw to stop.
using Progress = std::function<void(int64_t done, int64_t total)>;

// windows: the calibration text; none: without calibration.
void convert_layers(const FloatDecoder& decoder,
                    const models::DecoderTensors& tensors,
                    std::span<const std::vector<int32_t>> windows,
                    std::span<const Conversion> conversions,
                    const LayerSink& sink,
                    const Progress& progress);

}  // namespace longspur::quant
