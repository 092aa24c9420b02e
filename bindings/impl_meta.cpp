// Shapes without data, for torch.compile and fake tensors: the checks and allocations of the
// operations themselves.
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "bindings/nvfp4_qat.h"
#include "ops/attention_shape.h"
#include "ops/nvfp4_shape.h"

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
  m.impl("nvfp4_quantize", TORCH_FN(nvfp4_quantize));
  m.impl("nvfp4_dequantize", TORCH_FN(nvfp4_dequantize));
  m.impl("nvfp4_fake_quantize", TORCH_FN(nvfp4_fake_quantize));
  m.impl("nvfp4_linear", TORCH_FN(nvfp4_linear));
  m.impl("nvfp4_linear_backward", TORCH_FN(nvfp4_linear_backward));
  m.impl("nvfp4_linear_qat", TORCH_FN(nvfp4_linear_qat<nvfp4_qat>));
  m.impl("nvfp4_linear_qat_backward", TORCH_FN(nvfp4_linear_qat_backward<nvfp4_qat_backward>));
}

}  // namespace longspur
