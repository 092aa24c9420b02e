// Dense attention over packed sequences as a torch operation; formula and masks as in
// kernels/attention/varlen.h.
//
// q [Tq, H, D]; k, v [Tk, G, D], H a multiple of G; all of one dtype (float32, bfloat16, float16,
// float64) on one device. cu_seqlens_q, cu_seqlens_k: int32 [B + 1], rising from 0 to Tq and Tk, on
// the CPU or on q's device; their values are checked, which on another device waits for it once.
// max_seqlen_q, max_seqlen_k: bounds of the lengths. scale: default 1 / sqrt(D).
//
// Returns out [Tq, H, D] and lse [H, Tq] in natural logarithms, float32 (float64 for float64
// inputs). Both are differentiable, once: a second derivative throws. A wrong argument throws Error
// before anything is allocated.
//
// Not done here: dropout, bias, D of v other than D of k.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <tuple>

namespace longspur::ops {

// Out and lse, with autograd: what C++ callers use.
std::tuple<at::Tensor, at::Tensor> attention(const at::Tensor& q,
                                             const at::Tensor& k,
                                             const at::Tensor& v,
                                             const at::Tensor& cu_seqlens_q,
                                             const at::Tensor& cu_seqlens_k,
                                             int64_t max_seqlen_q,
                                             int64_t max_seqlen_k,
                                             bool causal = true,
                                             std::optional<double> scale = std::nullopt);

// The same without autograd.
std::tuple<at::Tensor, at::Tensor> attention_forward(const at::Tensor& q,
                                                     const at::Tensor& k,
                                                     const at::Tensor& v,
                                                     const at::Tensor& cu_seqlens_q,
                                                     const at::Tensor& cu_seqlens_k,
                                                     int64_t max_seqlen_q,
                                                     int64_t max_seqlen_k,
                                                     bool causal,
                                                     std::optional<double> scale);

// Gradients of q, k and v from those of out and of lse (none: zero).
std::tuple<at::Tensor, at::Tensor, at::Tensor> attention_backward(
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
    bool causal,
    std::optional<double> scale);

}  // namespace longspur::ops
