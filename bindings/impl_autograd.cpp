// Gradient rules: those of ops/, with the computation called through the dispatcher, so that
// torch.compile and fake tensors see it. Backward operations have no rule of their own on purpose.
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

#include "ops/attention.h"
#include "ops/attention_autograd.h"

namespace longspur {

namespace {

// The operation `longspur::name` with the signature of F.
template <class F>
c10::TypedOperatorHandle<F> find(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<F>();
}

struct DispatchedAttention {
  template <class... Args>
  static auto forward(const Args&... args) {
    static const auto op = find<decltype(ops::attention_forward)>("longspur::attention");
    return op.call(args...);
  }
  template <class... Args>
  static auto backward(const Args&... args) {
    static const auto op = find<decltype(ops::attention_backward)>("longspur::attention_backward");
    return op.call(args...);
  }
};

std::tuple<at::Tensor, at::Tensor> attention(const at::Tensor& q,
                                             const at::Tensor& k,
                                             const at::Tensor& v,
                                             const at::Tensor& cu_seqlens_q,
                                             const at::Tensor& cu_seqlens_k,
                                             int64_t max_seqlen_q,
                                             int64_t max_seqlen_k,
                                             bool causal,
                                             std::optional<double> scale) {
  return ops::attention_with_autograd<DispatchedAttention>(
      q, k, v, cu_seqlens_q, cu_seqlens_k, {max_seqlen_q, max_seqlen_k, causal, scale});
}

}  // namespace

TORCH_LIBRARY_IMPL(longspur, Autograd, m) { m.impl("attention", TORCH_FN(attention)); }

}  // namespace longspur
