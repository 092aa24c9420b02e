// The gradient rule of block-sparse attention, once for both ways to reach the computation, as in
// ops/attention_autograd.h: Calls has static functions `forward` and `backward` with the signatures
// of block_sparse_attention_forward and block_sparse_attention_backward. Heavy: include it where
// the rule is instantiated, nowhere else.
#pragma once

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/zeros_like.h>
#include <torch/csrc/autograd/custom_function.h>

#include <cstdint>
#include <optional>
#include <tuple>

#include "base/error.h"

namespace longspur::ops {

// What is no tensor.
struct BlockSparseOptions {
  int64_t max_seqlen_q, max_seqlen_k, block_size;
  bool causal;
  std::optional<double> scale;
  bool deterministic;
};

template <class Calls>
class BlockSparseBackwardFunction
    : public torch::autograd::Function<BlockSparseBackwardFunction<Calls>> {
  using Context = torch::autograd::AutogradContext;
  using Variables = torch::autograd::variable_list;

 public:
  static Variables forward(Context*,
                           const at::Tensor& grad_out,
                           const std::optional<at::Tensor>& grad_lse,
                           const at::Tensor& q,
                           const at::Tensor& k,
                           const at::Tensor& v,
                           const at::Tensor& out,
                           const at::Tensor& lse,
                           const at::Tensor& cu_seqlens_q,
                           const at::Tensor& cu_seqlens_k,
                           const at::Tensor& block_mask,
                           const BlockSparseOptions& options) {
    const at::AutoDispatchBelowADInplaceOrView below;
    auto [dq, dk, dv] =
        Calls::backward(grad_out, grad_lse, q, k, v, out, lse, cu_seqlens_q, cu_seqlens_k,
                        options.max_seqlen_q, options.max_seqlen_k, block_mask, options.block_size,
                        options.causal, options.scale, options.deterministic);
    return {dq, dk, dv};
  }
  static Variables backward(Context*, const Variables&) {
    throw UnsupportedError(
        "block_sparse_attention: found a second derivative, expected first ones only");
  }
};

template <class Calls>
class BlockSparseFunction : public torch::autograd::Function<BlockSparseFunction<Calls>> {
  using Context = torch::autograd::AutogradContext;
  using Variables = torch::autograd::variable_list;

 public:
  static Variables forward(Context* context,
                           const at::Tensor& q,
                           const at::Tensor& k,
                           const at::Tensor& v,
                           const at::Tensor& cu_seqlens_q,
                           const at::Tensor& cu_seqlens_k,
                           const at::Tensor& block_mask,
                           const BlockSparseOptions& options) {
    const at::AutoDispatchBelowADInplaceOrView below;
    auto [out, lse] = Calls::forward(q, k, v, cu_seqlens_q, cu_seqlens_k, options.max_seqlen_q,
                                     options.max_seqlen_k, block_mask, options.block_size,
                                     options.causal, options.scale, options.deterministic);
    context->save_for_backward({q, k, v, out, lse, cu_seqlens_q, cu_seqlens_k, block_mask});
    context->set_materialize_grads(false);  // without a gradient of lse there is less to do
    auto& saved = context->saved_data;
    saved["max_seqlen_q"] = options.max_seqlen_q;
    saved["max_seqlen_k"] = options.max_seqlen_k;
    saved["block_size"] = options.block_size;
    saved["causal"] = options.causal;
    saved["scale"] = options.scale;
    saved["deterministic"] = options.deterministic;
    return {out, lse};
  }

  static Variables backward(Context* context, const Variables& gradients) {
    const Variables s = context->get_saved_variables();
    auto& data = context->saved_data;
    const BlockSparseOptions options{data["max_seqlen_q"].toInt(),
                                     data["max_seqlen_k"].toInt(),
                                     data["block_size"].toInt(),
                                     data["causal"].toBool(),
                                     data["scale"].template toOptional<double>(),
                                     data["deterministic"].toBool()};
    const at::Tensor grad_out =
        gradients[0].defined() ? gradients[0] : at::zeros_like(s[3]);  // only lse was used
    const std::optional<at::Tensor> grad_lse =
        gradients[1].defined() ? std::optional(gradients[1]) : std::nullopt;
    Variables result = BlockSparseBackwardFunction<Calls>::apply(
        grad_out, grad_lse, s[0], s[1], s[2], s[3], s[4], s[5], s[6], s[7], options);
    result.resize(7);  // none for cu_seqlens, the mask and options
    return result;
  }
};

template <class Calls>
std::tuple<at::Tensor, at::Tensor> block_sparse_with_autograd(const at::Tensor& q,
                                                              const at::Tensor& k,
                                                              const at::Tensor& v,
                                                              const at::Tensor& cu_seqlens_q,
                                                              const at::Tensor& cu_seqlens_k,
                                                              const at::Tensor& block_mask,
                                                              const BlockSparseOptions& options) {
  const auto result =
      BlockSparseFunction<Calls>::apply(q, k, v, cu_seqlens_q, cu_seqlens_k, block_mask, options);
  return {result[0], result[1]};
}

}  // namespace longspur::ops
