// Shapes without data, for torch.compile and fake tensors: the checks and allocations of the
// operations themselves.
#include <torch/library.h>

#include "ops/attention_shape.h"

namespace longspur {

namespace {

std::tuple<at::Tensor, at::Tensor> attention(const at::Tensor& q,
                                             const at::Tensor& k,
                                             const at::Tensor& v,
                                             const at::Tensor& cu_seqlens_q,
                                             const at::Tensor& cu_seqlens_k,
                                             int64_t max_seqlen_q,
                                             int64_t max_seqlen_k,
                                             bool causal,
                                             std::optional<double> scale) {
  ops::check_attention(
      {q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, causal, scale});
  return ops::attention_outputs(q);
}

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
    std::optional<double> scale) {
  const ops::AttentionArgs args{
      q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, causal, scale};
  ops::check_attention(args);
  ops::check_attention_gradients(args, grad_out, grad_lse, out, lse);
  return ops::attention_gradients(q, k, v);
}

}  // namespace

TORCH_LIBRARY_IMPL(longspur, Meta, m) {
  m.impl("attention", TORCH_FN(attention));
  m.impl("attention_backward", TORCH_FN(attention_backward));
}

}  // namespace longspur
