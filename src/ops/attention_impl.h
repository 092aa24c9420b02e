// The implementations of attention, dense and over blocks, best first; each says what it accepts.
// Private to ops/.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <tuple>

#include "ops/attention_shape.h"

namespace longspur::ops {

// Checked arguments; rows of q, k and v are contiguous, no operand is empty.
struct AttentionProblem {
  at::Tensor q, k, v;                         // [Tq, H, D], [Tk, G, D]
  at::Tensor cu_seqlens_q, cu_seqlens_k;      // as given: CPU or device
  at::Tensor host_seqlens_q, host_seqlens_k;  // on the CPU
  int64_t longest_q = 0, longest_k = 0;
  bool causal = true;
  double scale = 1.0;

  // Chosen blocks of keys, the words of kernels::BlockMask as int32
  // [B, mask heads, query blocks, words] on q's device; undefined: every block.
  at::Tensor block_words;
  int64_t block_size = 128;
  bool deterministic = false;  // the backward's sums in one order
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

// Over chosen blocks
extern const AttentionImplementation kBlockSparseCpuTiles;      // kernels/block_sparse, vectorised
extern const AttentionImplementation kBlockSparseCpuReference;  // kernels/block_sparse, double
// Those of this build's devices, dense and over blocks: chosen by the sources that CMake names.
std::span<const AttentionImplementation* const> attention_device_implementations();
std::span<const AttentionImplementation* const> block_sparse_device_implementations();

// Checks the values of cu_seqlens, which check_attention could not; without blocks.
AttentionProblem make_attention_problem(std::string_view op, const AttentionArgs& args);
// out 0 and lse -inf; gradients 0.
AttentionResult attention_of_nothing(const at::Tensor& q);
AttentionGradient attention_gradient_of_nothing(const AttentionArgs& args);
AttentionGradients with_contiguous_gradients(const at::Tensor& grad_out,
                                             const std::optional<at::Tensor>& grad_lse,
                                             const at::Tensor& out,
                                             const at::Tensor& lse);

// The first of the list that accepts; there always is one.
const AttentionImplementation& choose_attention(const AttentionProblem& problem);
const AttentionImplementation& choose_block_sparse(const AttentionProblem& problem);

}  // namespace longspur::ops
