// Everything about attention's arguments that does not need their values: the checks and the shapes
// of the results. The operation and its Meta kernel call the same functions, so that they cannot
// drift apart. Sizes are symbolic: torch.compile traces through here.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <string_view>
#include <tuple>

namespace longspur::ops {

struct AttentionArgs {
  const at::Tensor& q;             // [Tq, H, D]
  const at::Tensor& k;             // [Tk, G, D]
  const at::Tensor& v;             // [Tk, G, D]
  const at::Tensor& cu_seqlens_q;  // [B + 1] int32
  const at::Tensor& cu_seqlens_k;  // [B + 1] int32
  int64_t max_seqlen_q, max_seqlen_k;
  bool causal;
  std::optional<double> scale;
};

// `op` names the operation in messages; an operation without v gives k in its place.
void check_attention(std::string_view op, const AttentionArgs& args);

// What the backward takes besides: as out and lse are.
void check_attention_gradients(std::string_view op,
                               const AttentionArgs& args,
                               const at::Tensor& grad_out,
                               const std::optional<at::Tensor>& grad_lse,
                               const at::Tensor& out,
                               const at::Tensor& lse);

at::ScalarType attention_lse_type(at::ScalarType dtype);

// Uninitialised results, contiguous: (out [Tq, H, D], lse [H, Tq]) and (dq, dk, dv).
std::tuple<at::Tensor, at::Tensor> attention_outputs(const at::Tensor& q);
std::tuple<at::Tensor, at::Tensor, at::Tensor> attention_gradients(const at::Tensor& q,
                                                                   const at::Tensor& k,
                                                                   const at::Tensor& v);

}  // namespace longspur::ops
