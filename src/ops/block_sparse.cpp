#include "ops/block_sparse.h"

#include <ATen/Context.h>

#include "base/error.h"
#include "ops/attention_impl.h"
#include "ops/block_sparse_shape.h"
#include "ops/block_words.h"

namespace longspur::ops {

namespace {

AttentionProblem make_problem(std::string_view op,
                              const BlockSparseArgs& args,
                              bool deterministic) {
  AttentionProblem problem = make_attention_problem(op, args.dense);
  problem.block_words = block_words(args.block_mask);
  problem.block_size = args.block_size;
  problem.deterministic = deterministic || at::globalContext().deterministicAlgorithms();
  return problem;
}

}  // namespace

const AttentionImplementation& choose_block_sparse(const AttentionProblem& problem) {
  for (const AttentionImplementation* candidate : block_sparse_device_implementations()) {
    if (candidate->accepts(problem)) return *candidate;
  }
  static constexpr const AttentionImplementation* kOrder[] = {
      &kBlockSparseCpuTiles, &kAttentionTorch, &kBlockSparseCpuReference};
  for (const AttentionImplementation* candidate : kOrder) {
    if (candidate->accepts(problem)) return *candidate;
  }
  throw UnsupportedError(concat("block_sparse_attention: found tensors on ",
                                problem.q.device().str(), ", expected on cpu or cuda"));
}

std::tuple<at::Tensor, at::Tensor> block_sparse_attention_forward(const at::Tensor& q,
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
  const std::string_view op = "block_sparse_attention";
  const BlockSparseArgs args{
      {q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, causal, scale},
      block_mask,
      block_size};
  check_block_sparse(op, args);
  const AttentionProblem problem = make_problem(op, args, deterministic);
  if (q.size(0) == 0 || k.size(0) == 0) return attention_of_nothing(q);
  return choose_block_sparse(problem).forward(problem);
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
    bool deterministic) {
  const std::string_view op = "block_sparse_attention_backward";
  const BlockSparseArgs args{
      {q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, causal, scale},
      block_mask,
      block_size};
  check_block_sparse(op, args);
  check_attention_gradients(op, args.dense, grad_out, grad_lse, out, lse);
  const AttentionProblem problem = make_problem(op, args, deterministic);
  if (q.size(0) == 0 || k.size(0) == 0) return attention_gradient_of_nothing(args.dense);
  const AttentionGradients gradients = with_contiguous_gradients(grad_out, grad_lse, out, lse);
  return choose_block_sparse(problem).backward(problem, gradients);
}

}  // namespace longspur::ops
