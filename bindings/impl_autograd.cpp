// Gradient rules: those of ops/, with the computation called through the dispatcher, so that
// torch.compile and fake tensors see it. Backward operations have no rule of their own on purpose.
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

#include "bindings/nvfp4_qat.h"
#include "bindings/xattention.h"
#include "ops/attention.h"
#include "ops/attention_autograd.h"
#include "ops/block_sparse.h"
#include "ops/block_sparse_autograd.h"
#include "ops/nvfp4.h"
#include "ops/nvfp4_autograd.h"
#include "ops/xattn.h"

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

struct DispatchedBlockSparse {
  template <class... Args>
  static auto forward(const Args&... args) {
    static const auto op =
        find<decltype(ops::block_sparse_attention_forward)>("longspur::block_sparse_attention");
    return op.call(args...);
  }
  template <class... Args>
  static auto backward(const Args&... args) {
    static const auto op = find<decltype(ops::block_sparse_attention_backward)>(
        "longspur::block_sparse_attention_backward");
    return op.call(args...);
  }
};

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
  return ops::block_sparse_with_autograd<DispatchedBlockSparse>(
      q, k, v, cu_seqlens_q, cu_seqlens_k, block_mask,
      {max_seqlen_q, max_seqlen_k, block_size, causal, scale, deterministic});
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> differentiable_xattention(
    const at::Tensor& q,
    const at::Tensor& k,
    const at::Tensor& v,
    const at::Tensor& cu_seqlens_q,
    const at::Tensor& cu_seqlens_k,
    int64_t max_seqlen_q,
    int64_t max_seqlen_k,
    const at::Tensor& threshold,
    const ops::XattentionOptions& o) {
  if (!at::GradMode::is_enabled() ||
      !(q.requires_grad() || k.requires_grad() || v.requires_grad())) {
    const at::AutoDispatchBelowADInplaceOrView below;  // inference: one operation
    static const auto op =
        find<decltype(xattention<ops::xattention_forward>)>("longspur::xattention");
    return op.call(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, threshold,
                   o.estimator, o.stride, o.block_size, o.causal, o.scale, o.sink_blocks,
                   o.local_blocks, o.per_kv_group, o.rule, o.deterministic);
  }
  ops::check_xattention(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, threshold,
                        o);
  static const auto choose =
      find<decltype(xattention_mask<ops::xattention_mask>)>("longspur::xattention_mask");
  const auto [mask, density] =
      choose.call(q.detach(), k.detach(), cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k,
                  threshold, o.estimator, o.stride, o.block_size, o.causal, o.scale, o.sink_blocks,
                  o.local_blocks, o.per_kv_group, o.rule);
  const auto [out, lse] =
      block_sparse_attention(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, mask,
                             o.block_size, o.causal, o.scale, o.deterministic);
  return {out, lse, density};
}

struct DispatchedNvfp4 {
  template <class... Args>
  static at::Tensor fake_quantize(const Args&... args) {
    static const auto op =
        find<decltype(ops::nvfp4_fake_quantize_forward)>("longspur::nvfp4_fake_quantize");
    return op.call(args...);
  }
  template <class... Args>
  static at::Tensor linear(const Args&... args) {
    static const auto op = find<decltype(ops::nvfp4_linear_forward)>("longspur::nvfp4_linear");
    return op.call(args...);
  }
  template <class... Args>
  static at::Tensor linear_backward(const Args&... args) {
    static const auto op =
        find<decltype(ops::nvfp4_linear_backward)>("longspur::nvfp4_linear_backward");
    return op.call(args...);
  }
  static at::Tensor linear_qat(const at::Tensor& x,
                               const at::Tensor& weight,
                               const std::optional<at::Tensor>& bias,
                               const ops::Nvfp4QatOptions& o) {
    static const auto op = find<decltype(nvfp4_linear_qat<ops::nvfp4_linear_qat_forward>)>(
        "longspur::nvfp4_linear_qat");
    return op.call(x, weight, bias, o.activation_rule, o.weight_rule, o.gradient_rule, o.metric,
                   o.tile_2d, o.gradient_rounding, o.quantize_dgrad, o.quantize_wgrad, o.hadamard,
                   o.per_row, o.seed);
  }
  static std::tuple<at::Tensor, at::Tensor> linear_qat_backward(const at::Tensor& grad,
                                                                const at::Tensor& x,
                                                                const at::Tensor& weight,
                                                                const ops::Nvfp4QatOptions& o) {
    static const auto op =
        find<decltype(nvfp4_linear_qat_backward<ops::nvfp4_linear_qat_backward>)>(
            "longspur::nvfp4_linear_qat_backward");
    return op.call(grad, x, weight, o.activation_rule, o.weight_rule, o.gradient_rule, o.metric,
                   o.tile_2d, o.gradient_rounding, o.quantize_dgrad, o.quantize_wgrad, o.hadamard,
                   o.per_row, o.seed);
  }
};

at::Tensor nvfp4_fake_quantize(const at::Tensor& x,
                               const std::optional<at::Tensor>& amax,
                               std::string_view rule,
                               std::string_view metric,
                               bool tile_2d,
                               std::string_view rounding,
                               int64_t seed,
                               bool per_row,
                               int64_t scale_bound,
                               const std::optional<at::Tensor>& importance) {
  return ops::Nvfp4FakeQuantizeFunction<DispatchedNvfp4>::apply(
      x, amax, rule, metric, tile_2d, rounding, seed, per_row, scale_bound, importance);
}

at::Tensor nvfp4_linear(const at::Tensor& x,
                        const at::Tensor& codes,
                        const at::Tensor& block_scales,
                        const at::Tensor& tensor_scale,
                        const std::optional<at::Tensor>& bias,
                        std::optional<std::string_view> activations,
                        std::string_view activation_metric) {
  if (!at::GradMode::is_enabled() || !(x.requires_grad() || (bias && bias->requires_grad()))) {
    const at::AutoDispatchBelowADInplaceOrView below;  // inference: nothing to record
    return DispatchedNvfp4::linear(x, codes, block_scales, tensor_scale, bias, activations,
                                   activation_metric);
  }
  return ops::Nvfp4LinearFunction<DispatchedNvfp4>::apply(x, codes, block_scales, tensor_scale,
                                                          bias, activations, activation_metric);
}

at::Tensor nvfp4_qat(const at::Tensor& x,
                     const at::Tensor& weight,
                     const std::optional<at::Tensor>& bias,
                     const ops::Nvfp4QatOptions& options) {
  return ops::Nvfp4QatFunction<DispatchedNvfp4>::apply(x, weight, bias, options);
}

}  // namespace

TORCH_LIBRARY_IMPL(longspur, Autograd, m) {
  m.impl("attention", TORCH_FN(attention));
  m.impl("block_sparse_attention", TORCH_FN(block_sparse_attention));
  m.impl("xattention", TORCH_FN(xattention<differentiable_xattention>));
  // Scores choose blocks: no gradient goes through them.
  m.impl("xattn_block_scores", torch::CppFunction::makeFallthrough());
  m.impl("xattn_select", torch::CppFunction::makeFallthrough());
  m.impl("xattention_mask", torch::CppFunction::makeFallthrough());
  // Codes and scales are steps of their inputs: no gradient goes through (nvfp4_fake_quantize has
  // the straight-through one).
  m.impl("nvfp4_quantize", torch::CppFunction::makeFallthrough());
  m.impl("nvfp4_dequantize", torch::CppFunction::makeFallthrough());
  m.impl("nvfp4_fake_quantize", TORCH_FN(nvfp4_fake_quantize));
  m.impl("nvfp4_linear", TORCH_FN(nvfp4_linear));
  m.impl("nvfp4_linear_qat", TORCH_FN(nvfp4_linear_qat<nvfp4_qat>));
}

}  // namespace longspur
