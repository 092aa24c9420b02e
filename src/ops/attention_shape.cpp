#include "ops/attention_shape.h"

#include <ATen/ops/empty.h>

#include <cmath>
#include <string_view>

#include "base/error.h"
#include "ops/checks.h"

namespace longspur::ops {

namespace {

void check_heads(std::string_view op, const AttentionArgs& args) {
  const auto heads = args.q.sym_size(1), kv_heads = args.k.sym_size(1), dim = args.q.sym_size(2);
  if (dim <= 0) {
    throw Error(
        concat(op, ": q: found ", shown_shape(args.q), ", expected [Tq, H, D] with D at least 1"));
  }
  require(heads > 0 && kv_heads > 0 && heads % kv_heads == 0, op, ": heads: found ",
          shown_size(heads), " of q and ", shown_size(kv_heads),
          " of k, expected a multiple of k's, at least 1");
}

}  // namespace

void check_attention(std::string_view op, const AttentionArgs& args) {
  check_dim(op, "q", args.q, 3, "[Tq, H, D]");
  check_dim(op, "k", args.k, 3, "[Tk, Hkv, D]");
  check_floating(op, "q", args.q);
  check_like(op, "k", args.k, "q", args.q);
  check_like(op, "v", args.v, "q", args.q);
  if (args.k.sym_size(2) != args.q.sym_size(2)) {
    throw Error(concat(op, ": k: found ", shown_shape(args.k), ", expected [Tk, Hkv, D] with D = ",
                       shown_size(args.q.sym_size(2)), " as q has"));
  }
  check_shape(op, "v", args.v, args.k.sym_sizes(), "k's shape");
  check_heads(op, args);
  check_cu_seqlens_form(op, "cu_seqlens_q", args.cu_seqlens_q, args.q);
  check_cu_seqlens_form(op, "cu_seqlens_k", args.cu_seqlens_k, args.q);
  require(args.cu_seqlens_q.sym_size(0) == args.cu_seqlens_k.sym_size(0), op,
          ": cu_seqlens_k: found ", shown_size(args.cu_seqlens_k.sym_size(0)),
          " entries, expected ", shown_size(args.cu_seqlens_q.sym_size(0)), " as cu_seqlens_q has");
  check_at_least(op, "max_seqlen_q", args.max_seqlen_q, 0);
  check_at_least(op, "max_seqlen_k", args.max_seqlen_k, 0);
  require(!args.scale || std::isfinite(*args.scale), op, ": scale: found ",
          args.scale.value_or(0.0), ", expected a finite number");
}

void check_attention_gradients(std::string_view op,
                               const AttentionArgs& args,
                               const at::Tensor& grad_out,
                               const std::optional<at::Tensor>& grad_lse,
                               const at::Tensor& out,
                               const at::Tensor& lse) {
  const c10::SymInt lse_shape[] = {args.q.sym_size(1), args.q.sym_size(0)};
  check_like(op, "grad_out", grad_out, "q", args.q);
  check_shape(op, "grad_out", grad_out, args.q.sym_sizes(), "q's shape");
  check_like(op, "out", out, "q", args.q);
  check_shape(op, "out", out, args.q.sym_sizes(), "q's shape");
  check_shape(op, "lse", lse, lse_shape, "[H, Tq]");
  check_dtype(op, "lse", lse, attention_lse_type(args.q.scalar_type()));
  if (!grad_lse) return;
  check_shape(op, "grad_lse", *grad_lse, lse_shape, "[H, Tq]");
  check_dtype(op, "grad_lse", *grad_lse, lse.scalar_type());
}

at::ScalarType attention_lse_type(at::ScalarType dtype) {
  return dtype == at::kDouble ? at::kDouble : at::kFloat;
}

std::tuple<at::Tensor, at::Tensor> attention_outputs(const at::Tensor& q) {
  const auto lse_options = q.options().dtype(attention_lse_type(q.scalar_type()));
  return {at::empty_symint(q.sym_sizes(), q.options()),
          at::empty_symint({q.sym_size(1), q.sym_size(0)}, lse_options)};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> attention_gradients(const at::Tensor& q,
                                                                   const at::Tensor& k,
                                                                   const at::Tensor& v) {
  return {at::empty_symint(q.sym_sizes(), q.options()),
          at::empty_symint(k.sym_sizes(), k.options()),
          at::empty_symint(v.sym_sizes(), v.options())};
}

}  // namespace longspur::ops
