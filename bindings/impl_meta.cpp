// Shapes without data, for torch.compile and fake tensors: the checks and allocations of the
// operations themselves.
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "bindings/nvfp4_qat.h"
#include "bindings/xattention.h"
#include "ops/attention_shape.h"
#include "ops/block_sparse_shape.h"
#include "ops/nvfp4_shape.h"
#include "ops/xattn.h"
#include "ops/xattn_shape.h"

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
  ops::check_attention("attention", {q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q,
                                     max_seqlen_k, causal, scale});
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
  ops::check_attention("attention_backward", args);
  ops::check_attention_gradients("attention_backward", args, grad_out, grad_lse, out, lse);
  return ops::attention_gradients(q, k, v);
}

at::Tensor xattn_block_scores(const at::Tensor& q,
                              const at::Tensor& k,
                              const at::Tensor& cu_seqlens_q,
                              const at::Tensor& cu_seqlens_k,
                              int64_t max_seqlen_q,
                              int64_t max_seqlen_k,
                              std::string_view estimator,
                              int64_t stride,
                              int64_t block_size,
                              bool causal,
                              std::optional<double> scale,
                              bool per_kv_group) {
  const ops::XattnScoreArgs args{
      {q, k, k, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, causal, scale},
      estimator,
      stride,
      block_size,
      per_kv_group};
  ops::check_xattn_scores("xattn_block_scores", args);
  return ops::xattn_scores_output(args);
}

at::Tensor xattn_select(const at::Tensor& scores,
                        const at::Tensor& threshold,
                        const at::Tensor& cu_seqlens_q,
                        const at::Tensor& cu_seqlens_k,
                        int64_t block_size,
                        int64_t sink_blocks,
                        int64_t local_blocks,
                        bool causal,
                        std::string_view rule) {
  const ops::XattnSelectArgs args{scores,      threshold,    cu_seqlens_q, cu_seqlens_k, block_size,
                                  sink_blocks, local_blocks, causal,       rule};
  ops::check_xattn_select("xattn_select", args);
  return at::empty_symint(scores.sym_sizes(), scores.options().dtype(at::kBool));
}

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
                                                          bool) {
  ops::check_block_sparse("block_sparse_attention", {{q, k, v, cu_seqlens_q, cu_seqlens_k,
                                                      max_seqlen_q, max_seqlen_k, causal, scale},
                                                     block_mask,
                                                     block_size});
  return ops::attention_outputs(q);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> block_sparse_attention_backward(
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
    const at::Tensor& block_mask,
    int64_t block_size,
    bool causal,
    std::optional<double> scale,
    bool) {
  const std::string_view op = "block_sparse_attention_backward";
  const ops::BlockSparseArgs args{
      {q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, causal, scale},
      block_mask,
      block_size};
  ops::check_block_sparse(op, args);
  ops::check_attention_gradients(op, args.dense, grad_out, grad_lse, out, lse);
  return ops::attention_gradients(q, k, v);
}

std::tuple<at::Tensor, at::Tensor> mask(const at::Tensor& q,
                                        const at::Tensor& k,
                                        const at::Tensor& cu_seqlens_q,
                                        const at::Tensor& cu_seqlens_k,
                                        int64_t max_seqlen_q,
                                        int64_t max_seqlen_k,
                                        const at::Tensor& threshold,
                                        const ops::XattentionOptions& options) {
  ops::check_xattention(q, k, k, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, threshold,
                        options);
  const ops::XattnScoreArgs args{{q, k, k, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k,
                                  options.causal, options.scale},
                                 options.estimator,
                                 options.stride,
                                 options.block_size,
                                 options.per_kv_group};
  const at::Tensor scores = ops::xattn_scores_output(args);
  return {at::empty_symint(scores.sym_sizes(), scores.options().dtype(at::kBool)),
          ops::xattention_density_output(q, cu_seqlens_q)};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> attend(const at::Tensor& q,
                                                      const at::Tensor& k,
                                                      const at::Tensor& v,
                                                      const at::Tensor& cu_seqlens_q,
                                                      const at::Tensor& cu_seqlens_k,
                                                      int64_t max_seqlen_q,
                                                      int64_t max_seqlen_k,
                                                      const at::Tensor& threshold,
                                                      const ops::XattentionOptions& options) {
  ops::check_xattention(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, threshold,
                        options);
  const auto [out, lse] = ops::attention_outputs(q);
  return {out, lse, ops::xattention_density_output(q, cu_seqlens_q)};
}

ops::Nvfp4Tensors nvfp4_quantize(const at::Tensor& x,
                                 const std::optional<at::Tensor>& amax,
                                 std::string_view rule,
                                 std::string_view metric,
                                 bool tile_2d,
                                 std::string_view rounding,
                                 int64_t seed,
                                 bool per_row,
                                 int64_t scale_bound,
                                 const std::optional<at::Tensor>& importance,
                                 bool hadamard,
                                 bool transpose,
                                 bool swizzle) {
  const ops::Nvfp4QuantizeArgs args{x,        amax,      rule,    metric,      tile_2d,
                                    rounding, seed,      per_row, scale_bound, importance,
                                    hadamard, transpose, swizzle};
  ops::check_nvfp4_quantize(args);
  return ops::nvfp4_quantize_outputs(args);
}

at::Tensor nvfp4_dequantize(const at::Tensor& codes,
                            const at::Tensor& block_scales,
                            const at::Tensor& tensor_scale,
                            at::ScalarType dtype,
                            bool swizzle) {
  const ops::Nvfp4Operand operand{codes, block_scales, tensor_scale, swizzle};
  ops::check_nvfp4_dequantize(operand, dtype);
  return ops::nvfp4_dequantize_output(operand, dtype);
}

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
  ops::check_nvfp4_quantize({x, amax, rule, metric, tile_2d, rounding, seed, per_row, scale_bound,
                             importance, false, false, false});
  return at::empty_symint(x.sym_sizes(), x.options());
}

at::Tensor nvfp4_linear(const at::Tensor& x,
                        const at::Tensor& codes,
                        const at::Tensor& block_scales,
                        const at::Tensor& tensor_scale,
                        const std::optional<at::Tensor>& bias,
                        std::optional<std::string_view> activations,
                        std::string_view activation_metric) {
  const ops::Nvfp4Operand weight{codes, block_scales, tensor_scale};
  const ops::Nvfp4LinearArgs args{x, weight, bias, activations, activation_metric};
  ops::check_nvfp4_linear(args);
  return ops::nvfp4_linear_output(args);
}

at::Tensor nvfp4_linear_backward(const at::Tensor& grad,
                                 const at::Tensor& codes,
                                 const at::Tensor& block_scales,
                                 const at::Tensor& tensor_scale) {
  const ops::Nvfp4Operand weight{codes, block_scales, tensor_scale};
  ops::check_nvfp4_linear_backward(grad, weight);
  return ops::nvfp4_linear_backward_output(grad, weight);
}

at::Tensor nvfp4_qat(const at::Tensor& x,
                     const at::Tensor& weight,
                     const std::optional<at::Tensor>& bias,
                     const ops::Nvfp4QatOptions& options) {
  const ops::Nvfp4QatArgs args{x, weight, bias, options};
  ops::check_nvfp4_linear_qat(args);
  return ops::nvfp4_linear_qat_output(args);
}

std::tuple<at::Tensor, at::Tensor> nvfp4_qat_backward(const at::Tensor& grad,
                                                      const at::Tensor& x,
                                                      const at::Tensor& weight,
                                                      const ops::Nvfp4QatOptions& options) {
  const ops::Nvfp4QatArgs args{x, weight, std::nullopt, options};
  ops::check_nvfp4_linear_qat(args);
  ops::check_nvfp4_linear_qat_gradient(args, grad);
  return {at::empty_symint(x.sym_sizes(), x.options()),
          at::empty_symint(weight.sym_sizes(), weight.options())};
}

}  // namespace

TORCH_LIBRARY_IMPL(longspur, Meta, m) {
  m.impl("attention", TORCH_FN(attention));
  m.impl("attention_backward", TORCH_FN(attention_backward));
  m.impl("xattn_block_scores", TORCH_FN(xattn_block_scores));
  m.impl("xattn_select", TORCH_FN(xattn_select));
  m.impl("block_sparse_attention", TORCH_FN(block_sparse_attention));
  m.impl("block_sparse_attention_backward", TORCH_FN(block_sparse_attention_backward));
  m.impl("xattention", TORCH_FN(xattention<attend>));
  m.impl("xattention_mask", TORCH_FN(xattention_mask<mask>));
  m.impl("nvfp4_quantize", TORCH_FN(nvfp4_quantize));
  m.impl("nvfp4_dequantize", TORCH_FN(nvfp4_dequantize));
  m.impl("nvfp4_fake_quantize", TORCH_FN(nvfp4_fake_quantize));
  m.impl("nvfp4_linear", TORCH_FN(nvfp4_linear));
  m.impl("nvfp4_linear_backward", TORCH_FN(nvfp4_linear_backward));
  m.impl("nvfp4_linear_qat", TORCH_FN(nvfp4_linear_qat<nvfp4_qat>));
  m.impl("nvfp4_linear_qat_backward", TORCH_FN(nvfp4_linear_qat_backward<nvfp4_qat_backward>));
}

}  // namespace longspur
