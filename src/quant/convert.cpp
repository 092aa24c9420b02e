#include "quant/convert.h"

#include <algorithm>
#include <optional>

#include "base/error.h"
#include "quant/sequential.h"

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
    const Matrix entering = any_sequential() ? original_.hidden : Matrix();
    InputRecorder inputs;
    std::optional<LayerStats> shared;
    if (calibrated) shared = run_original(index, *packed, inputs);
    for (size_t i = 0; i < conversions_.size(); ++i) {
      const Conversion& conversion = conversions_[i];
      const KeptSites& kept = conversion.kept.empty() ? kNothingKept : conversion.kept[index];
      if (calibrated && conversion.sequential && !conversion.options.scales) {
        sink_(i, index, weights, product_by_product(i, index, weights, inputs, entering, kept));
        continue;
      }
      const bool sequential = calibrated && conversion.sequential;
      std::optional<LayerStats> own;
      if (sequential) {
        FloatDecoder::Batch copy = own_[i];
        own = observe(index, *packed, copy);
      }
      const LayerStats* stats = own ? &*own : shared ? &*shared : nullptr;
      ConvertedLayer converted = convert_layer(decoder_.config(), weights, stats,
                                               conversion.options, kept, decoder_.pool());
      if (sequential) {
        const LayerWeights quantised = read_back(converted, decoder_.pool());
        decoder_.run_layer(index, pack_layer(quantised, decoder_.pool()), own_[i], {});
      }
      sink_(i, index, weights, std::move(converted));
    }
  }

 private:
  bool any_parallel() const {
    return std::any_of(conversions_.begin(), conversions_.end(),
                       [](const Conversion& conversion) { return !conversion.sequential; });
  }
  bool any_sequential() const {
    return std::any_of(conversions_.begin(), conversions_.end(),
                       [](const Conversion& conversion) { return conversion.sequential; });
  }

  // Moves the original batch through the layer; keeps what sequential conversions compare with and
  // returns the statistics for the others.
  std::optional<LayerStats> run_original(size_t index,
                                         const PackedLayer& layer,
                                         InputRecorder& inputs) {
    if (!any_sequential()) return observe(index, layer, original_);
    decoder_.run_layer(index, layer, original_, {.observer = &inputs});
    if (!any_parallel()) return std::nullopt;
    CalibrationObserver observer(decoder_.pool());
    for (int site = 0; site < kSites; ++site) observer.reads(Site(site), inputs.of(Site(site)));
    return observer.take();
  }

  ConvertedLayer product_by_product(size_t conversion,
                                    size_t index,
                                    const LayerWeights& weights,
                                    const InputRecorder& inputs,
                                    const Matrix& entering,
                                    const KeptSites& kept) {
    FloatDecoder::Batch& own = own_[conversion];
    Matrix drift = entering;
    for (size_t i = 0; i < drift.values.size(); ++i) drift.values[i] -= own.hidden.values[i];
    PackedLayer packed = pack_layer(weights, decoder_.pool());
    SequentialLayer layer(weights, inputs, std::move(drift), conversions_[conversion].options, kept,
                          packed, decoder_.pool());
    decoder_.run_layer(index, packed, own, {.observer = &layer});
    return layer.take();
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
