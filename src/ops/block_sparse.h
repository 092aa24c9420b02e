// Attention in which each block of 128 queries reads only chosen blocks of keys, as a torch
// operation; formula and masks as in kernels/attention/varlen.h over the chosen keys.
//
// Arguments as of ops/attention.h, and
//   block_mask  bool [B, H or G or 1, nQ, nK] on q's device: whether query block i (rows 128 i ..)
//               reads key block j (keys block_size * j ..). nQ = ceil(max_seqlen_q / 128),
//               nK = ceil(max_seqlen_k / block_size). Blocks beyond a sequence or in the causal
//               future are ignored.
//   block_size  keys a block, 64 or 128
// A query that reads no key has out 0, lse -inf and gives no gradient. The mask has no gradient.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <tuple>

namespace longspur::ops {

// Out [Tq, H, D] and lse [H, Tq], with autograd: what C++ callers use.
std::tuple<at::Tensor, at::Tensor> block_sparse_attention(
    const at::Tensor& q,
    const at::Tensor& k,
    const at::Tensor& v,
    const at::Tensor& cu_seqlens_q,
    const at::Tensor& cu_seqlens_k,
    int64_t max_seqlen_q,
    int64_t max_seqlen_k,
    const at::Tensor& block_mask,
    int64_t block_size = 128,
    bool causal = true,
    std::optional<double> scale = std::nullopt,
    bool deterministic = false);

// The same without autograd.
std::tuple<at::Tensor, at::Tensor> block_sparse_attention_forward(const at::Tensor& q,
                                                                  const at::Tensor& k,
                                                                  const at::Tensor& v,
                                                                  const at::Tensor& cu_seqlens_q,
                                                                  const at::Tensor& cu_seqlens_k,
                                                                  int64_t max_seqlen_q,
                                                                  int64_t max_seqlen_k,
                                                                  const at::Tensor& block_mask,
                                                                  int64_t block_size,
                                                                  bool causal,
                                                                  std::optional<double> scale,
                                                                  bool deterministic);

// Gradients of q, k and v from those of out and of lse (none: zero).
std::tuple<at::Tensor, at::Tensor, at::Tensor> block_sparse_attention_backward(
    const at::Tensor& grad_out,
    const std::optional<at::Tensor>& grad_lse,
    const at::Tensor& q,
    const at::Tensor& k,
    const at::Tensor& v,
    const at::Tensor& out,
    const at::Tensor& lse,
    const at::Tensor& cu_seqlens_q,
    const at::Tensor& cu_seqlens_k,
    int64_t max_seqlen_q,
    int64_t max_seqlen_k,
    const at::Tensor& block_mask,
    int64_t block_size,
    bool causal,
    std::optional<double> scale,
    bool deterministic);

}  // namespace longspur::ops
