#include "quant/convert.h"

#include <optional>

#include "base/error.h"

namespace longspur::quant {

namespace {

constexpr KeptSites kNothingKept = {};

class Walk {
 public:
  Walk(const FloatDecoder& decoder,
       std::span<const std::vector<int32_t>> windows,
       std::span<const Conversion> conversions,
       const LayerSink& sink)
      : decoder_(decoder), conversions_(conversions), sink_(sink) {
    if (windows.empty()) return;
    original_ = decoder.embed(windows);
    own_.resize(conversions.size());
    for (size_t i = 0; i < conversions.size(); ++i)
      if (conversions[i].sequential) own_[i] = original_;
  }

  void layer(size_t index, const LayerWeights& weights) {
    const bool calibrated = !original_.cu_seqlens.empty();
    std::optional<PackedLayer> packed;
    if (calibrated) packed = pack_layer(weights, decoder_.pool());
    std::optional<LayerStats> shared;
    if (calibrated && any_parallel()) shared = observe(index, *packed, original_);
    for (size_t i = 0; i < conversions_.size(); ++i) {
      const bool sequential = calibrated && conversions_[i].sequential;
      std::optional<LayerStats> own;
      if (sequential) {
        FloatDecoder::Batch copy = own_[i];
        own = observe(index, *packed, copy);
      }
      const LayerStats* stats = own ? &*own : shared ? &*shared : nullptr;
      const auto& kept = conversions_[i].kept;
      ConvertedLayer converted =
          convert_layer(decoder_.config(), weights, stats, conversions_[i].options,
                        kept.empty() ? kNothingKept : kept[index], decoder_.pool());
      if (sequential) {
        const LayerWeights quantised = read_back(converted, decoder_.pool());
        decoder_.run_layer(index, pack_layer(quantised, decoder_.pool()), own_[i], {});
      }
      sink_(i, index, weights, std::move(converted));
    }
  }

 private:
  bool any_parallel() const {
    for (const Conversion& conversion : conversions_)
      if (!conversion.sequential) return true;
    return false;
  }

  // Moves the batch through the layer, looking at what its products read.
  LayerStats observe(size_t index, const PackedLayer& layer, FloatDecoder::Batch& batch) {
    CalibrationObserver observer(decoder_.pool());
    decoder_.run_layer(index, layer, batch, {.observer = &observer});
    return observer.take();
  }

  const FloatDecoder& decoder_;
  std::span<const Conversion> conversions_;
  const LayerSink& sink_;
  FloatDecoder::Batch original_;
  std::vector<FloatDecoder::Batch> own_;  // of sequential conversions
};

}  // namespace

void convert_layers(const FloatDecoder& decoder,
                    const models::DecoderTensors& tensors,
                    std::span<const std::vector<int32_t>> windows,
                    std::span<const Conversion> conversions,
                    const LayerSink& sink,
                    const Progress& progress) {
  Walk walk(decoder, windows, conversions, sink);
  const auto layers = int64_t(tensors.layers.size());
  for (int64_t i = 0; i < layers; ++i) {
    if (progress) progress(i, layers);
    walk.layer(size_t(i), load_layer(tensors.layers[size_t(i)], decoder.pool()));
  }
  if (progress) progress(layers, layers);
}

}  // namespace longspur::quant
