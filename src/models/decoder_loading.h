// A backend's weights from a model's tensors: which of them are stacked into one product and where
// each goes, once for every backend.
#pragma once

#include <vector>

#include "models/decoder_tensors.h"

namespace longspur::models {

// Loader: linear(sources, biases) stacks matrices along N, with a bias for each (empty sources: no
// bias); vector(source) is empty when the model has no such tensor.
template <class Weights, class Loader>
Weights load_decoder(Loader& loader, const DecoderTensors& tensors) {
  Weights weights;
  weights.embedding = loader.linear({tensors.embedding}, {TensorSource{}});
  weights.head = tensors.head ? loader.linear({tensors.head}, {TensorSource{}}) : weights.embedding;
  weights.final_norm = loader.vector(tensors.final_norm);
  for (const LayerTensors& t : tensors.layers) {
    auto& layer = weights.layers.emplace_back();
    layer.attn_norm = loader.vector(t.attn_norm);
    layer.qkv = loader.linear({t.q, t.k, t.v}, {t.q_bias, t.k_bias, t.v_bias});
    layer.q_norm = loader.vector(t.q_norm);
    layer.k_norm = loader.vector(t.k_norm);
    layer.output = loader.linear({t.output}, {t.output_bias});
    layer.ffn_norm = loader.vector(t.ffn_norm);
    layer.gate_up = loader.linear({t.gate, t.up}, {t.gate_bias, t.up_bias});
    layer.down = loader.linear({t.down}, {t.down_bias});
  }
  return weights;
}

}  // namespace longspur::models
