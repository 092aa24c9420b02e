// The gradient rule of attention, once for both ways to reach the computation: Calls has static
// functions `forward` and `backward` with the signatures of attention_forward and
// attention_backward. C++ callers use these directly; bindings/ goes through torch's dispatcher, so
// that tracing sees both. Heavy: include it where the rule is instantiated, nowhere else.
//
// The backward is a Function of its own whose backward refuses: a second derivative would otherwise
// be silently zero.
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
struct AttentionOptions {
  int64_t max_seqlen_q, max_seqlen_k;
  bool causal;
  std::optional<double> scale;
};

template <class Calls>
class AttentionBackwardFunction
    : public torch::autograd::Function<AttentionBackwardFunction<Calls>> {
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
                           const AttentionOptions& options) {
    const at::AutoDispatchBelowADInplaceOrView below;
    auto [dq, dk, dv] =
        Calls::backward(grad_out, grad_lse, q, k, v, out, lse, cu_seqlens_q, cu_seqlens_k,
                        options.max_seqlen_q, options.max_seqlen_k, options.causal, options.scale);
    return {dq, dk, dv};
  }
  static Variables backward(Context*, const Variables&) {
    throw UnsupportedError("attention: found a second derivative, expected first ones only");
  }
};

template <class Calls>
class AttentionFunction : public torch::autograd::Function<AttentionFunction<Calls>> {
  using Context = torch::autograd::AutogradContext;
  using Variables = torch::autograd::variable_list;

 public:
  static Variables forward(Context* context,
                           const at::Tensor& q,
                           const at::Tensor& k,
                           const at::Tensor& v,
                           const at::Tensor& cu_seqlens_q,
                           const at::Tensor& cu_seqlens_k,
                           const AttentionOptions& options) {
    const at::AutoDispatchBelowADInplaceOrView below;
    auto [out, lse] = Calls::forward(q, k, v, cu_seqlens_q, cu_seqlens_k, options.max_seqlen_q,
                                     options.max_seqlen_k, options.causal, options.scale);
    context->save_for_backward({q, k, v, out, lse, cu_seqlens_q, cu_seqlens_k});
    context->set_materialize_grads(false);  // without a gradient of lse there is less to do
    auto& saved = context->saved_data;
    saved["max_seqlen_q"] = options.max_seqlen_q;
    saved["max_seqlen_k"] = options.max_seqlen_k;
    saved["causal"] = options.causal;
    saved["scale"] = options.scale;
    return {out, lse};
  }

  static Variables backward(Context* context, const Variables& gradients) {
    const Variables s = context->get_saved_variables();
    auto& data = context->saved_data;
    const AttentionOptions options{data["max_seqlen_q"].toInt(), data["max_seqlen_k"].toInt(),
                                   data["causal"].toBool(),
                                   data["scale"].template toOptional<double>()};
    const at::Tensor grad_out =
        gradients[0].defined() ? gradients[0] : at::zeros_like(s[3]);  // only lse was used
    const std::optional<at::Tensor> grad_lse =
        gradients[1].defined() ? std::optional(gradients[1]) : std::nullopt;
    Variables result = AttentionBackwardFunction<Calls>::apply(grad_out, grad_lse, s[0], s[1], s[2],
                                                               s[3], s[4], s[5], s[6], options);
    result.resize(6);  // none for cu_seqlens and options
    return result;
  }
};

template <class Calls>
std::tuple<at::Tensor, at::Tensor> attention_with_autograd(const at::Tensor& q,
                                                           const at::Tensor& k,
                                                           const at::Tensor& v,
                                                           const at::Tensor& cu_seqlens_q,
                                                           const at::Tensor& cu_seqlens_k,
                                                           const AttentionOptions& options) {
  const auto result = AttentionFunction<Calls>::apply(q, k, v, cu_seqlens_q, cu_seqlens_k, options);
  return {result[0], result[1]};
}

}  // namespace longspur::ops
