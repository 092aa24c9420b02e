// The operations of block_sparse.h and xattn.h with gradients, for C++ callers.
#include <ATen/core/grad_mode.h>

#include "ops/block_sparse.h"
#include "ops/block_sparse_autograd.h"
#include "ops/xattn.h"

namespace longspur::ops {

namespace {

struct DirectCalls {
  static constexpr auto forward = block_sparse_attention_forward;
  static constexpr auto backward = block_sparse_attention_backward;
};

}  // namespace

std::tuple<at::Tensor, at::Tensor> block_sparse_attention(const at::Tensor& q,
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
                                                          bool deterministic) {
  return block_sparse_with_autograd<DirectCalls>(
      q, k, v, cu_seqlens_q, cu_seqlens_k, block_mask,
      {max_seqlen_q, max_seqlen_k, block_size, causal, scale, deterministic});
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> xattention(const at::Tensor& q,
                                                          const at::Tensor& k,
                                                          const at::Tensor& v,
                                                          const at::Tensor& cu_seqlens_q,
                                                          const at::Tensor& cu_seqlens_k,
                                                          int64_t max_seqlen_q,
                                                          int64_t max_seqlen_k,
                                                          const at::Tensor& threshold,
                                                          const XattentionOptions& options) {
  if (!at::GradMode::is_enabled() ||
      !(q.requires_grad() || k.requires_grad() || v.requires_grad())) {
    return xattention_forward(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k,
                              threshold, options);
  }
  check_xattention(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, threshold,
                   options);
  const auto [mask, density] = xattention_mask(q.detach(), k.detach(), cu_seqlens_q, cu_seqlens_k,
                                               max_seqlen_q, max_seqlen_k, threshold, options);
  const auto [out, lse] = block_sparse_attention(
      q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, mask, options.block_size,
      options.causal, options.scale, options.deterministic);
  return {out, lse, density};
}

}  // namespace longspur::ops
