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

// Hidden states after the last layer, before the final norm, of the rows whose logits are wanted.
template <class Backend>
auto decoder_hidden(Backend& backend, const typename Backend::Weights& weights) {
  auto hidden = backend.embed(weights.embedding);
  const std::size_t layers = weights.layers.size();
  for (std::size_t i = 0; i < layers; ++i) {
    const auto& layer = weights.layers[i];
    auto qkv = backend.linear(layer.qkv, backend.rms_norm(hidden, layer.attn_norm));
    auto attended = backend.attention(i, layer, qkv);
    if (i + 1 == layers) {  // from here on rows are independent: only the wanted ones matter
      attended = backend.outputs(attended);
      hidden = backend.outputs(hidden);
    }
    hidden = backend.add_linear(hidden, layer.output, attended);
    auto gate_up = backend.linear(layer.gate_up, backend.rms_norm(hidden, layer.ffn_norm));
    hidden = backend.add_linear(hidden, layer.down, backend.swiglu(gate_up));
  }
  return hidden;
}

// Logits [R, V] of rows that decoder_hidden returned.
template <class Backend, class Act>
auto decoder_logits(Backend& backend, const typename Backend::Weights& weights, const Act& hidden) {
  return backend.logits(weights.head, backend.rms_norm(hidden, weights.final_norm));
}

}  // namespace longspur::models
