#include "ops/attention.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/error.h"
#include "ops/attention_impl.h"
#include "ops/attention_shape.h"
#include "ops/checks.h"

namespace longspur::ops {

namespace {

int64_t longest(const at::Tensor& host_seqlens) {
  const int32_t* begins = host_seqlens.const_data_ptr<int32_t>();
  int64_t most = 0;
  for (int64_t b = 0; b + 1 < host_seqlens.numel(); ++b)
    most = std::max<int64_t>(most, begins[b + 1] - begins[b]);
  return most;
}

}  // namespace

AttentionProblem make_attention_problem(std::string_view op, const AttentionArgs& args) {
  AttentionProblem problem;
  problem.q = with_contiguous_rows(args.q);
  problem.k = with_contiguous_rows(args.k);
  problem.v = with_contiguous_rows(args.v);
  problem.cu_seqlens_q = args.cu_seqlens_q;
  problem.cu_seqlens_k = args.cu_seqlens_k;
  problem.host_seqlens_q =
      cu_seqlens_on_host(op, "cu_seqlens_q", args.cu_seqlens_q, args.q.size(0), args.max_seqlen_q);
  problem.host_seqlens_k =
      cu_seqlens_on_host(op, "cu_seqlens_k", args.cu_seqlens_k, args.k.size(0), args.max_seqlen_k);
  problem.longest_q = longest(problem.host_seqlens_q);
  problem.longest_k = longest(problem.host_seqlens_k);
  problem.causal = args.causal;
  problem.scale = args.scale.value_or(1.0 / std::sqrt(double(args.q.size(2))));
  return problem;
}

AttentionResult attention_of_nothing(const at::Tensor& q) {
  const auto [out, lse] = attention_outputs(q);
  return {out.zero_(), lse.fill_(-std::numeric_limits<double>::infinity())};
}

AttentionGradient attention_gradient_of_nothing(const AttentionArgs& args) {
  const auto [dq, dk, dv] = attention_gradients(args.q, args.k, args.v);
  return {dq.zero_(), dk.zero_(), dv.zero_()};
}

AttentionGradients with_contiguous_gradients(const at::Tensor& grad_out,
                                             const std::optional<at::Tensor>& grad_lse,
                                             const at::Tensor& out,
                                             const at::Tensor& lse) {
  AttentionGradients gradients{with_contiguous_rows(grad_out), std::nullopt,
                               with_contiguous_rows(out), lse.contiguous()};
  if (grad_lse) gradients.grad_lse = grad_lse->contiguous();
  return gradients;
}

const AttentionImplementation& choose_attention(const AttentionProblem& problem) {
  for (const AttentionImplementation* candidate : attention_device_implementations()) {
    if (candidate->accepts(problem)) return *candidate;
  }
  static constexpr const AttentionImplementation* kOrder[] = {
      &kAttentionFlash, &kAttentionCpuTiles, &kAttentionTorch, &kAttentionCpuReference};
  for (const AttentionImplementation* candidate : kOrder) {
    if (candidate->accepts(problem)) return *candidate;
  }
  throw UnsupportedError(concat("attention: found tensors on ", problem.q.device().str(),
                                ", expected on cpu or cuda"));
}

std::tuple<at::Tensor, at::Tensor> attention_forward(const at::Tensor& q,
                                                     const at::Tensor& k,
                                                     const at::Tensor& v,
                                                     const at::Tensor& cu_seqlens_q,
                                                     const at::Tensor& cu_seqlens_k,
                                                     int64_t max_seqlen_q,
                                                     int64_t max_seqlen_k,
                                                     bool causal,
                                                     std::optional<double> scale) {
  const AttentionArgs args{q,      k,    v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k,
                           causal, scale};
  check_attention("attention", args);
  const AttentionProblem problem = make_attention_problem("attention", args);
  if (q.size(0) == 0 || k.size(0) == 0) return attention_of_nothing(q);
  return choose_attention(problem).forward(problem);
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
  const AttentionArgs args{q,      k,    v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k,
                           causal, scale};
  const std::string_view op = "attention_backward";
  check_attention(op, args);
  check_attention_gradients(op, args, grad_out, grad_lse, out, lse);
  const AttentionProblem problem = make_attention_problem(op, args);
  if (q.size(0) == 0 || k.size(0) == 0) return attention_gradient_of_nothing(args);
  const AttentionGradients gradients = with_contiguous_gradients(grad_out, grad_lse, out, lse);
  return choose_attention(problem).backward(problem, gradients);
}

}  // namespace longspur::ops
