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
}
