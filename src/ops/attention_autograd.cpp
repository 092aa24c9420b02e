#include "ops/attention_autograd.h"

#include "ops/attention.h"

namespace longspur::ops {

namespace {

struct DirectCalls {
  static constexpr auto forward = attention_forward;
  static constexpr auto backward = attention_backward;
};

}  // namespace

std::tuple<at::Tensor, at::Tensor> attention(const at::Tensor& q,
                                             const at::Tensor& k,
                                             const at::Tensor& v,
                                             const at::Tensor& cu_seqlens_q,
                                             const at::Tensor& cu_seqlens_k,
                                             int64_t max_seqlen_q,
                                             int64_t max_seqlen_k,
                                             bool causal,
                                             std::optional<double> scale) {
  return attention_with_autograd<DirectCalls>(q, k, v, cu_seqlens_q, cu_seqlens_k,
                                              {max_seqlen_q, max_seqlen_k, causal, scale});
}

}  // namespace longspur::ops
