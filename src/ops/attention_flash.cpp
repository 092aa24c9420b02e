// Attention on CUDA through the FlashAttention-2 kernels that torch carries: 16-bit, packed
// sequences, the same alignment of a shorter q as ours. Differences that are levelled here: torch
// gives lse +inf to a row without keys, wants head sizes in multiples of 8, takes a maximum of
// unscaled scores (so scale must be positive), and knows no gradient of lse.
//
// Gradient of lse: it adds ds' = p * grad_lse, so dq' = scale * grad_lse * (p k), an attention
// whose values are the keys, and dk' = scale * p^T (grad_lse q), its dv for the output gradient
// scale * grad_lse * q. Rarely needed, so two more kernel calls are fine.
#include <ATen/TensorOperators.h>
#include <ATen/ops/_flash_attention_backward.h>
#include <ATen/ops/_flash_attention_forward.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <limits>

#include "base/shape.h"
#include "ops/attention_impl.h"

namespace longspur::ops {

namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

bool accepts(const AttentionProblem& problem) {
  const at::ScalarType dtype = problem.q.scalar_type();
  return problem.q.is_cuda() && (dtype == at::kHalf || dtype == at::kBFloat16) &&
         problem.q.size(2) <= 256 && problem.scale > 0.0;
}

at::Tensor padded(const at::Tensor& x) {
  const int64_t extra = round_up(x.size(2), 8) - x.size(2);
  return extra == 0 ? x : at::constant_pad_nd(x, {0, extra});
}

at::Tensor unpadded(const at::Tensor& x, int64_t dim) { return x.narrow(2, 0, dim).contiguous(); }

struct Flash {
  explicit Flash(const AttentionProblem& problem)
      : problem(problem),
        cu_q(problem.cu_seqlens_q.to(problem.q.device()).contiguous()),
        cu_k(problem.cu_seqlens_k.to(problem.q.device()).contiguous()) {}

  // For one row, torch takes a short cut that is wrong when some sequence has none.
  int64_t longest_q() const { return std::max<int64_t>(problem.longest_q, 2); }

  // lse as torch has it.
  AttentionResult forward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) const {
    auto [out, lse, state, unused, mask] =
        at::_flash_attention_forward(q, k, v, cu_q, cu_k, longest_q(), problem.longest_k, 0.0,
                                     problem.causal, false, std::optional<double>(problem.scale));
    return {out, lse};
  }

  AttentionGradient backward(const at::Tensor& grad_out,
                             const at::Tensor& q,
                             const at::Tensor& k,
                             const at::Tensor& v,
                             const at::Tensor& out,
                             const at::Tensor& lse) const {
    // The state of dropout's random numbers, which is not read.
    const at::Tensor state = at::empty({2}, q.options().dtype(at::kUInt64));
    return at::_flash_attention_backward(grad_out, q, k, v, out, lse, cu_q, cu_k, longest_q(),
                                         problem.longest_k, 0.0, problem.causal, state, state,
                                         problem.scale);
  }

  const AttentionProblem& problem;
  at::Tensor cu_q, cu_k;
};

AttentionResult flash_forward(const AttentionProblem& problem) {
  const Flash flash(problem);
  const auto [out, lse] = flash.forward(padded(problem.q), padded(problem.k), padded(problem.v));
  return {unpadded(out, problem.q.size(2)), lse.masked_fill(lse == kInfinity, -kInfinity)};
}

AttentionGradient flash_backward(const AttentionProblem& problem,
                                 const AttentionGradients& gradients) {
  const Flash flash(problem);
  const int64_t dim = problem.q.size(2);
  const at::Tensor q = padded(problem.q), k = padded(problem.k), v = padded(problem.v);
  const at::Tensor lse = gradients.lse.masked_fill(gradients.lse == -kInfinity, kInfinity);
  auto [dq, dk, dv] =
      flash.backward(padded(gradients.grad_out), q, k, v, padded(gradients.out), lse);
  if (gradients.grad_lse) {
    // Rows without keys have no gradient whatever grad_lse says: p is zero there.
    const at::Tensor weight =
        (gradients.grad_lse->t().unsqueeze(2) * problem.scale).to(q.scalar_type());  // [Tq, H, 1]
    const at::Tensor mean_key = std::get<0>(flash.forward(q, k, k));
    const at::Tensor keys_gradient =
        std::get<2>(flash.backward((weight * q).contiguous(), q, k, k, mean_key, lse));
    dq = dq + weight * mean_key;
    dk = dk + keys_gradient;
  }
  return {unpadded(dq, dim), unpadded(dk, dim), unpadded(dv, dim)};
}

}  // namespace

const AttentionImplementation kAttentionFlash = {"cuda_flash", accepts, flash_forward,
                                                 flash_backward};

}  // namespace longspur::ops
