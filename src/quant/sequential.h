// One layer quantised while the calibration text goes through it: each product just before it runs,
// on inputs that come from everything quantised so far, retargeted to what the original model
// computes (retarget.h). Two passes over the text a layer.
#pragma once

#include <array>

#include "quant/convert_layer.h"
#include "quant/float_decoder.h"

namespace longspur::quant {

// The inputs of each product, kept.
class InputRecorder : public InputObserver {
 public:
  void reads(Site site, const Matrix& x) override { inputs_[size_t(site)] = x; }
  const Matrix& of(Site site) const { return inputs_[size_t(site)]; }

 private:
  std::array<Matrix, kSites> inputs_;
};

class SequentialLayer : public InputObserver {
 public:
  // weights, inputs (of the original model, this layer) and packed are borrowed; packed, at first
  // the original layer, is what runs and becomes the quantised one product by product. drift: the
  // residual stream that enters the layer, original minus quantised [T, C].
  SequentialLayer(const LayerWeights& weights,
                  const InputRecorder& inputs,
                  Matrix drift,
                  const ConvertOptions& options,
                  const KeptSites& kept,
                  PackedLayer& packed,
                  ThreadPool& pool);

  void reads(Site site, const Matrix& x) override;
  ConvertedLayer take() { return std::move(result_); }

 private:
  // The site's matrices as they are to be quantised.
  void retarget_site(Site site, const Matrix& x, const InputStats& stats);
  // Puts the site's quantised matrices into the layer that runs, and what its output changes into
  // the drift.
  void install(Site site, const Matrix& x);

  const LayerWeights& weights_;
  const InputRecorder& inputs_;
  Matrix drift_;
  const ConvertOptions& options_;
  KeptSites kept_;
  PackedLayer& packed_;
  ThreadPool& pool_;
  LayerWeights targets_;
  ConvertedLayer result_;
};

}  // namespace longspur::quant
