// The decoder family (Llama, Mistral, Qwen2, Qwen3, SmolLM2), defined once for every use. The text
// below is the model; a Backend says what its operations are:
//
//   CPU inference   fused kernels on raw buffers, one SPMD team a step (runtime/cpu_backend.h)
//   CUDA inference  kernels on device buffers
//   torch           torch::Tensor with autograd, no cache (models/torch_decoder.h): training
//
// A Backend has the types Weights and Act and these operations. A value handed to the next
// operation may be lazy: rms_norm and swiglu feed exactly one product each, so a backend is free to
// fuse them into the reading of its operand.
//
//   embed(W)              -> Act [T, C]          rows of the batch's tokens
//   rms_norm(x, w)        -> operand [T, C]      x / sqrt(mean(x^2) + eps) * w
//   swiglu(x)             -> operand [T, F]      silu(x[:, :F]) * x[:, F:]
//   linear(W, operand)    -> Act [T, N]
//   add_linear(x, W, a)   -> Act [T, C]          x + a W^T; may overwrite x
//   attention(i, L, qkv)  -> Act [T, H * D]      per-head norms, RoPE, cache append, attention
//   outputs(x)            -> Act [R, C]          the rows whose logits are wanted
//   logits(W, operand)    -> Act [R, V]
#pragma once

#include <cstddef>
#include <utility>
#include <vector>

namespace longspur::models {

template <class Linear, class Vector>
struct DecoderLayer {
  Vector attn_norm;  // [C]
  Linear qkv;        // [(H + 2 G) D, C], bias included
  Vector q_norm;     // [D] or empty (Qwen3)
  Vector k_norm;     // [D] or empty
  Linear output;     // [C, H D]
  Vector ffn_norm;   // [C]
  Linear gate_up;    // [2 F, C]
  Linear down;       // [C, F]
};

template <class Linear, class Vector>
struct DecoderWeights {
  Linear embedding;  // [V, C]
  std::vector<DecoderLayer<Linear, Vector>> layers;
  Vector final_norm;  // [C]
  Linear head;        // [V, C]; the embedding itself when tied
};

// One layer: the hidden states that leave it. last: from its attention on rows are independent, and
// only those whose logits are wanted go on.
template <class Backend, class Layer, class Act>
Act decoder_layer(Backend& backend, std::size_t index, const Layer& layer, Act hidden, bool last) {
  auto qkv = backend.linear(layer.qkv, backend.rms_norm(hidden, layer.attn_norm));
  auto attended = backend.attention(index, layer, qkv);
  if (last) {
    attended = backend.outputs(attended);
    hidden = backend.outputs(hidden);
  }
  hidden = backend.add_linear(std::move(hidden), layer.output, std::move(attended));
  auto gate_up = backend.linear(layer.gate_up, backend.rms_norm(hidden, layer.ffn_norm));
  return backend.add_linear(std::move(hidden), layer.down, backend.swiglu(gate_up));
}

// Hidden states after the last layer, before the final norm, of the rows whose logits are wanted.
template <class Backend>
auto decoder_hidden(Backend& backend, const typename Backend::Weights& weights) {
  auto hidden = backend.embed(weights.embedding);
  const std::size_t layers = weights.layers.size();
  for (std::size_t i = 0; i < layers; ++i) {
    hidden = decoder_layer(backend, i, weights.layers[i], std::move(hidden), i + 1 == layers);
  }
  return hidden;
}

// Logits [R, V] of rows that decoder_hidden returned.
template <class Backend, class Act>
auto decoder_logits(Backend& backend, const typename Backend::Weights& weights, const Act& hidden) {
  return backend.logits(weights.head, backend.rms_norm(hidden, weights.final_norm));
}

}  // namespace longspur::models
