#include "ops/xattn.h"

#include <ATen/Context.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/where.h>

#include <array>
#include <limits>

#include "base/error.h"
#include "ops/block_words.h"
#include "ops/checks.h"
#include "ops/xattn_impl.h"
#include "ops/xattn_shape.h"

namespace longspur::ops {

namespace {

constexpr auto kFallbacks = std::to_array<const XattnImplementation*>({&kXattnCpu, &kXattnHost});

void run_scores(const XattnScoreProblem& problem) {
  for (const XattnImplementation* candidate : xattn_device_implementations())
    if (candidate->accepts_scores(problem)) return candidate->scores(problem);
  for (const XattnImplementation* candidate : kFallbacks)
    if (candidate->accepts_scores(problem)) return candidate->scores(problem);
}

void run_select(const XattnSelectProblem& problem) {
  for (const XattnImplementation* candidate : xattn_device_implementations())
    if (candidate->accepts_select(problem)) return candidate->select(problem);
  for (const XattnImplementation* candidate : kFallbacks)
    if (candidate->accepts_select(problem)) return candidate->select(problem);
}

// Of checked arguments.
at::Tensor scores_of(std::string_view op,
                     const XattnScoreArgs& args,
                     const AttentionProblem& operands) {
  const at::Tensor scores = xattn_scores_output(args);
  if (scores.numel() == 0) return scores;
  if (operands.q.size(0) == 0 || operands.k.size(0) == 0) return scores.zero_();
  run_scores({operands, xattn_estimator(op, args, operands.longest_k), args.block_size, scores});
  return scores;
}

// [heads] on the data's device, after checking the values.
at::Tensor thresholds(std::string_view op,
                      const at::Tensor& threshold,
                      int64_t heads,
                      const at::Tensor& data) {
  const at::Tensor host = threshold.to(at::kCPU).contiguous();
  const float* values = host.const_data_ptr<float>();
  for (int64_t i = 0; i < host.numel(); ++i) {
    if (values[i] >= 0.0f && values[i] <= 1.0f) continue;
    const std::string index = host.dim() == 0 ? "" : concat("[", i, "]");
    throw Error(
        concat(op, ": threshold", index, ": found ", values[i], ", expected a number from 0 to 1"));
  }
  return threshold.expand({heads})
      .to(data.device(), at::kFloat, /*non_blocking=*/true)
      .contiguous();
}

// Allocates and fills problem.words, and stats if they are wanted.
void select_blocks(XattnSelectProblem& problem, bool with_stats) {
  const at::Tensor& scores = problem.scores;
  const auto options = scores.options().dtype(at::kInt);
  const int64_t row_words = kernels::BlockMask::words_of(scores.size(3));
  problem.words = at::empty({scores.size(0), scores.size(1), scores.size(2), row_words}, options);
  if (with_stats)
    problem.stats = at::empty({scores.size(0), scores.size(1), scores.size(2), 3}, options);
  if (scores.numel() > 0) {
    run_select(problem);
    return;
  }
  problem.words.zero_();
  if (with_stats) problem.stats.zero_();
}

// [B, H] from the counts of rows of [B, H or G].
at::Tensor density_of(const at::Tensor& stats, int64_t heads) {
  const at::Tensor kept = stats.select(-1, 0).sum(-1).to(at::kFloat);
  const at::Tensor visible = stats.select(-1, 1).sum(-1).to(at::kFloat);
  const at::Tensor density = at::where(visible > 0, kept / visible, at::ones_like(kept));
  const int64_t batch = density.size(0), mask_heads = density.size(1);
  return density.unsqueeze(2)
      .expand({batch, mask_heads, heads / mask_heads})
      .reshape({batch, heads});
}

struct Choice {
  at::Tensor words, density;
};

// Of checked arguments: which blocks xattention reads.
Choice choose(std::string_view op,
              const XattnScoreArgs& args,
              const AttentionProblem& operands,
              const at::Tensor& threshold,
              const kernels::xattn::SelectOptions& options) {
  XattnSelectProblem problem;
  const int64_t heads = args.per_kv_group ? operands.k.size(1) : operands.q.size(1);
  problem.threshold = thresholds(op, threshold, heads, operands.q);
  problem.scores = scores_of(op, args, operands);
  problem.cu_seqlens_q = operands.cu_seqlens_q;
  problem.cu_seqlens_k = operands.cu_seqlens_k;
  problem.host_seqlens_q = operands.host_seqlens_q;
  problem.host_seqlens_k = operands.host_seqlens_k;
  problem.options = options;
  select_blocks(problem, true);
  return {problem.words, density_of(problem.stats, operands.q.size(1))};
}

XattnScoreArgs score_args(const AttentionArgs& dense, const XattentionOptions& options) {
  return {dense, options.estimator, options.stride, options.block_size, options.per_kv_group};
}

// The checks of xattention and xattention_mask.
kernels::xattn::SelectOptions check_choice(std::string_view op,
                                           const XattnScoreArgs& args,
                                           const at::Tensor& threshold,
                                           const XattentionOptions& options) {
  check_xattn_scores(op, args);
  check_xattn_threshold(op, threshold, args.dense.q, xattn_mask_heads(args));
  return xattn_select_options(op, options.block_size, options.sink_blocks, options.local_blocks,
                              options.causal, options.rule);
}

}  // namespace

void check_xattention(const at::Tensor& q,
                      const at::Tensor& k,
                      const at::Tensor& v,
                      const at::Tensor& cu_seqlens_q,
                      const at::Tensor& cu_seqlens_k,
                      int64_t max_seqlen_q,
                      int64_t max_seqlen_k,
                      const at::Tensor& threshold,
                      const XattentionOptions& options) {
  const AttentionArgs dense{q,
                            k,
                            v,
                            cu_seqlens_q,
                            cu_seqlens_k,
                            max_seqlen_q,
                            max_seqlen_k,
                            options.causal,
                            options.scale};
  check_choice("xattention", score_args(dense, options), threshold, options);
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
  const std::string_view op = "xattn_block_scores";
  const XattnScoreArgs args{
      {q, k, k, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, causal, scale},
      estimator,
      stride,
      block_size,
      per_kv_group};
  check_xattn_scores(op, args);
  return scores_of(op, args, make_attention_problem(op, args.dense));
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
  const std::string_view op = "xattn_select";
  const XattnSelectArgs args{scores,      threshold,    cu_seqlens_q, cu_seqlens_k, block_size,
                             sink_blocks, local_blocks, causal,       rule};
  check_xattn_select(op, args);
  XattnSelectProblem problem;
  problem.cu_seqlens_q = cu_seqlens_q;
  problem.cu_seqlens_k = cu_seqlens_k;
  problem.host_seqlens_q = cu_seqlens_on_host(op, "cu_seqlens_q", cu_seqlens_q, std::nullopt,
                                              scores.size(2) * kernels::kQueryBlock);
  problem.host_seqlens_k = cu_seqlens_on_host(op, "cu_seqlens_k", cu_seqlens_k, std::nullopt,
                                              scores.size(3) * block_size);
  problem.threshold = thresholds(op, threshold, scores.size(1), scores);
  problem.scores = scores.contiguous();
  problem.options = xattn_select_options(op, block_size, sink_blocks, local_blocks, causal, rule);
  select_blocks(problem, false);
  return unpacked_block_words(problem.words, scores.size(3));
}

std::tuple<at::Tensor, at::Tensor> xattention_mask(const at::Tensor& q,
                                                   const at::Tensor& k,
                                                   const at::Tensor& cu_seqlens_q,
                                                   const at::Tensor& cu_seqlens_k,
                                                   int64_t max_seqlen_q,
                                                   int64_t max_seqlen_k,
                                                   const at::Tensor& threshold,
                                                   const XattentionOptions& options) {
  const std::string_view op = "xattention";  // of which this is the first half
  const AttentionArgs dense{q,
                            k,
                            k,
                            cu_seqlens_q,
                            cu_seqlens_k,
                            max_seqlen_q,
                            max_seqlen_k,
                            options.causal,
                            options.scale};
  const XattnScoreArgs args = score_args(dense, options);
  const auto select = check_choice(op, args, threshold, options);
  const Choice choice = choose(op, args, make_attention_problem(op, dense), threshold, select);
  return {unpacked_block_words(choice.words, ceil_div(max_seqlen_k, options.block_size)),
          choice.density};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> xattention_forward(
    const at::Tensor& q,
    const at::Tensor& k,
    const at::Tensor& v,
    const at::Tensor& cu_seqlens_q,
    const at::Tensor& cu_seqlens_k,
    int64_t max_seqlen_q,
    int64_t max_seqlen_k,
    const at::Tensor& threshold,
    const XattentionOptions& options) {
  const std::string_view op = "xattention";
  const AttentionArgs dense{q,
                            k,
                            v,
                            cu_seqlens_q,
                            cu_seqlens_k,
                            max_seqlen_q,
                            max_seqlen_k,
                            options.causal,
                            options.scale};
  const XattnScoreArgs args = score_args(dense, options);
  const auto select = check_choice(op, args, threshold, options);
  AttentionProblem problem = make_attention_problem(op, dense);
  const Choice choice = choose(op, args, problem, threshold, select);
  problem.block_words = choice.words;
  problem.block_size = options.block_size;
  const auto [out, lse] = q.size(0) == 0 || k.size(0) == 0
                              ? attention_of_nothing(q)
                              : choose_block_sparse(problem).forward(problem);
  return {out, lse, choice.density};
}

}  // namespace longspur::ops
