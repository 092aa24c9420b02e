// The implementations of attention, best first; each says what it accepts. Private to ops/.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <string_view>
#include <tuple>

namespace longspur::ops {

// Checked arguments; rows of q, k and v are contiguous, no operand is empty.
struct AttentionProblem {
  at::Tensor q, k, v;                         // [Tq, H, D], [Tk, G, D]
  at::Tensor cu_seqlens_q, cu_seqlens_k;      // as given: CPU or device
  at::Tensor host_seqlens_q, host_seqlens_k;  // on the CPU
  int64_t longest_q = 0, longest_k = 0;
  bool causal = true;
  double scale = 1.0;
};

struct AttentionGradients {
  at::Tensor grad_out;                 // [Tq, H, D], rows contiguous
  std::optional<at::Tensor> grad_lse;  // [H, Tq], contiguous
  at::Tensor out, lse;                 // results of the forward, likewise
};

using AttentionResult = std::tuple<at::Tensor, at::Tensor>;                // out, lse
using AttentionGradient = std::tuple<at::Tensor, at::Tensor, at::Tensor>;  // dq, dk, dv

struct AttentionImplementation {
  std::string_view name;
  bool (*accepts)(const AttentionProblem&);
  AttentionResult (*forward)(const AttentionProblem&);
  AttentionGradient (*backward)(const AttentionProblem&, const AttentionGradients&);
};

extern const AttentionImplementation kAttentionCpuTiles;      // kernels/attention, vectorised
extern const AttentionImplementation kAttentionCpuReference;  // kernels/attention, double
extern const AttentionImplementation kAttentionFlash;         // torch's FlashAttention on CUDA
extern const AttentionImplementation kAttentionTorch;         // products of torch, any device

// The first of the list that accepts; there always is one.
const AttentionImplementation& choose_attention(const AttentionProblem& problem);

}  // namespace longspur::ops
