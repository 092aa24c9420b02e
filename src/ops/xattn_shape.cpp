#include "ops/xattn_shape.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <array>

#include "base/error.h"
#include "base/shape.h"
#include "kernels/common/block_mask.h"
#include "ops/block_sparse_shape.h"
#include "ops/checks.h"

namespace longspur::ops {

namespace {

// On one line, whatever the caller gave.
std::string printable(std::string text) {
  for (char& c : text)
    if (static_cast<unsigned char>(c) < ' ') c = '?';
  return text;
}

}  // namespace

kernels::xattn::Estimator xattn_estimator(std::string_view op,
                                          const XattnScoreArgs& args,
                                          int64_t longest_k) {
  try {
    return kernels::xattn::parse_estimator(args.estimator, args.stride, args.block_size, longest_k);
  } catch (const Error& error) {
    const std::string text = printable(error.what());
    throw Error(concat(op, text.starts_with("estimator") ? ": " : ": estimator: ", text));
  }
}

void check_xattn_scores(std::string_view op, const XattnScoreArgs& args) {
  check_attention(op, args.dense);
  check_block_size(op, args.block_size);
  static constexpr std::array<int64_t, 5> kStrides = {4, 8, 16, 32, 64};
  require(std::find(kStrides.begin(), kStrides.end(), args.stride) != kStrides.end(), op,
          ": stride: found ", args.stride,
          ", expected 4, 8, 16, 32 or 64, which divide the block of ", args.block_size, " keys");
  xattn_estimator(op, args, args.dense.max_seqlen_k);
}

c10::SymInt xattn_mask_heads(const XattnScoreArgs& args) {
  return args.per_kv_group ? args.dense.k.sym_size(1) : args.dense.q.sym_size(1);
}

at::Tensor xattn_scores_output(const XattnScoreArgs& args) {
  return at::empty_symint({args.dense.cu_seqlens_q.sym_size(0) - 1, xattn_mask_heads(args),
                           ceil_div(args.dense.max_seqlen_q, kernels::kQueryBlock),
                           ceil_div(args.dense.max_seqlen_k, args.block_size)},
                          args.dense.q.options().dtype(at::kFloat));
}

at::Tensor xattention_density_output(const at::Tensor& q, const at::Tensor& cu_seqlens_q) {
  return at::empty_symint({cu_seqlens_q.sym_size(0) - 1, q.sym_size(1)},
                          q.options().dtype(at::kFloat));
}

void check_xattn_threshold(std::string_view op,
                           const at::Tensor& threshold,
                           const at::Tensor& data,
                           const c10::SymInt& heads) {
  check_dtype(op, "threshold", threshold, at::kFloat);
  require(threshold.device().is_cpu() || threshold.device() == data.device(), op,
          ": threshold: found on ", threshold.device().str(), ", expected on cpu or ",
          data.device().str());
  if (threshold.dim() == 0) return;
  if (threshold.dim() > 1 || threshold.sym_size(0) != heads) {
    throw Error(concat(op, ": threshold: found shape ", shown_shape(threshold),
                       ", expected [] or [", shown_size(heads), "], one a head of the mask"));
  }
}

kernels::xattn::SelectOptions xattn_select_options(std::string_view op,
                                                   int64_t block_size,
                                                   int64_t sink_blocks,
                                                   int64_t local_blocks,
                                                   bool causal,
                                                   std::string_view rule) {
  using kernels::xattn::Rule;
  check_block_size(op, block_size);
  check_at_least(op, "sink_blocks", sink_blocks, 0);
  check_at_least(op, "local_blocks", local_blocks, 0);
  require(rule == "share" || rule == "of_max", op, ": rule: found '", printable(std::string(rule)),
          "', expected share or of_max");
  return {rule == "share" ? Rule::kShare : Rule::kOfMax, block_size, sink_blocks, local_blocks,
          causal};
}

void check_xattn_select(std::string_view op, const XattnSelectArgs& args) {
  check_dim(op, "scores", args.scores, 4, "[B, H, nQ, nK]");
  check_dtype(op, "scores", args.scores, at::kFloat);
  check_cu_seqlens_form(op, "cu_seqlens_q", args.cu_seqlens_q, args.scores);
  check_cu_seqlens_form(op, "cu_seqlens_k", args.cu_seqlens_k, args.scores);
  const auto batch = args.scores.sym_size(0);
  for (const auto& [name, cu_seqlens] : {std::pair{"cu_seqlens_q", &args.cu_seqlens_q},
                                         std::pair{"cu_seqlens_k", &args.cu_seqlens_k}}) {
    require(cu_seqlens->sym_size(0) == batch + 1, op, ": ", name, ": found ",
            shown_size(cu_seqlens->sym_size(0)), " entries, expected ", shown_size(batch + 1),
            ", one more than the sequences of scores");
  }
  xattn_select_options(op, args.block_size, args.sink_blocks, args.local_blocks, args.causal,
                       args.rule);
  check_xattn_threshold(op, args.threshold, args.scores, args.scores.sym_size(1));
}

}  // namespace longspur::ops
