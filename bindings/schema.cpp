// The schemas of all operations, and nothing else: what torch.ops.longspur offers. A public
// signature stays; arguments are added at the end only, with defaults. Operations whose name ends
// in _backward are there for tracing and may change.
#include <torch/library.h>

TORCH_LIBRARY(longspur, m) {
  m.def(
      "attention(Tensor q, Tensor k, Tensor v, Tensor cu_seqlens_q, Tensor cu_seqlens_k, "
      "int max_seqlen_q, int max_seqlen_k, bool causal=True, float? scale=None) "
      "-> (Tensor out, Tensor lse)");
  m.def(
      "attention_backward(Tensor grad_out, Tensor? grad_lse, Tensor q, Tensor k, Tensor v, "
      "Tensor out, Tensor lse, Tensor cu_seqlens_q, Tensor cu_seqlens_k, int max_seqlen_q, "
      "int max_seqlen_k, bool causal=True, float? scale=None) -> (Tensor dq, Tensor dk, Tensor "
      "dv)");
  m.def(
      "nvfp4_quantize(Tensor x, Tensor? amax=None, str rule=\"four_over_six\", str metric=\"mse\", "
      "bool tile_2d=False, str rounding=\"nearest\", int seed=0, bool per_row=False, "
      "int scale_bound=0, Tensor? importance=None, bool hadamard=False, bool transpose=False, "
      "bool swizzle=False) -> (Tensor codes, Tensor block_scales, Tensor tensor_scale)");
  m.def(
      "nvfp4_dequantize(Tensor codes, Tensor block_scales, Tensor tensor_scale, ScalarType dtype, "
      "bool swizzle=False) -> Tensor");
  m.def(
      "nvfp4_fake_quantize(Tensor x, Tensor? amax=None, str rule=\"four_over_six\", "
      "str metric=\"mse\", bool tile_2d=False, str rounding=\"nearest\", int seed=0, "
      "bool per_row=False, int scale_bound=0, Tensor? importance=None) -> Tensor");
  m.def(
      "nvfp4_linear(Tensor x, Tensor codes, Tensor block_scales, Tensor tensor_scale, "
      "Tensor? bias=None, str? activations=None, str activation_metric=\"mse\") -> Tensor");
  m.def(
      "nvfp4_linear_backward(Tensor grad, Tensor codes, Tensor block_scales, Tensor tensor_scale) "
      "-> Tensor");
  m.def(
      "nvfp4_linear_qat(Tensor x, Tensor weight, Tensor? bias=None, "
      "str? activation_rule=\"four_over_six\", str? weight_rule=\"four_over_six\", "
      "str? gradient_rule=\"four_over_six\", str metric=\"mse\", bool tile_2d=False, "
      "str gradient_rounding=\"stochastic_unbiased\", bool quantize_dgrad=True, "
      "bool quantize_wgrad=True, bool hadamard=True, bool per_row=True, int seed=0) -> Tensor");
  m.def(
      "nvfp4_linear_qat_backward(Tensor grad, Tensor x, Tensor weight, str? activation_rule, "
      "str? weight_rule, str? gradient_rule, str metric, bool tile_2d, str gradient_rounding, "
      "bool quantize_dgrad, bool quantize_wgrad, bool hadamard, bool per_row, int seed) "
      "-> (Tensor dx, Tensor dw)");
}

TORCH_LIBRARY_FRAGMENT(longspur, m) {
  m.def(
      "xattn_block_scores(Tensor q, Tensor k, Tensor cu_seqlens_q, Tensor cu_seqlens_k, "
      "int max_seqlen_q, int max_seqlen_k, str estimator=\"antidiagonal\", int stride=16, "
      "int block_size=128, bool causal=True, float? scale=None, bool per_kv_group=False) -> "
      "Tensor");
  m.def(
      "xattn_select(Tensor scores, Tensor threshold, Tensor cu_seqlens_q, Tensor cu_seqlens_k, "
      "int block_size=128, int sink_blocks=1, int local_blocks=1, bool causal=True, "
      "str rule=\"share\") -> Tensor");
  m.def(
      "block_sparse_attention(Tensor q, Tensor k, Tensor v, Tensor cu_seqlens_q, "
      "Tensor cu_seqlens_k, int max_seqlen_q, int max_seqlen_k, Tensor block_mask, "
      "int block_size=128, bool causal=True, float? scale=None, bool deterministic=False) "
      "-> (Tensor out, Tensor lse)");
  m.def(
      "block_sparse_attention_backward(Tensor grad_out, Tensor? grad_lse, Tensor q, Tensor k, "
      "Tensor v, Tensor out, Tensor lse, Tensor cu_seqlens_q, Tensor cu_seqlens_k, "
      "int max_seqlen_q, int max_seqlen_k, Tensor block_mask, int block_size=128, "
      "bool causal=True, float? scale=None, bool deterministic=False) "
      "-> (Tensor dq, Tensor dk, Tensor dv)");
  m.def(
      "xattention(Tensor q, Tensor k, Tensor v, Tensor cu_seqlens_q, Tensor cu_seqlens_k, "
      "int max_seqlen_q, int max_seqlen_k, Tensor threshold, str estimator=\"antidiagonal\", "
      "int stride=16, int block_size=128, bool causal=True, float? scale=None, int sink_blocks=1, "
      "int local_blocks=1, bool per_kv_group=False, str rule=\"share\", bool deterministic=False) "
      "-> (Tensor out, Tensor lse, Tensor density)");
  // The first half of xattention, which its gradient rule calls.
  m.def(
      "xattention_mask(Tensor q, Tensor k, Tensor cu_seqlens_q, Tensor cu_seqlens_k, "
      "int max_seqlen_q, int max_seqlen_k, Tensor threshold, str estimator=\"antidiagonal\", "
      "int stride=16, int block_size=128, bool causal=True, float? scale=None, int sink_blocks=1, "
      "int local_blocks=1, bool per_kv_group=False, str rule=\"share\") "
      "-> (Tensor block_mask, Tensor density)");
}
