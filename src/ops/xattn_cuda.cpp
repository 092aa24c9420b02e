// XAttention's scores and selection on CUDA: torch tensors to the launchers of kernels/xattn/cuda.
// Only in builds that have them.
#include <ATen/ops/empty.h>

#include <array>

#include "kernels/xattn/cuda/xattn_cuda.h"
#include "ops/device_stream.h"
#include "ops/xattn_impl.h"

namespace longspur::ops {

namespace {

namespace device = kernels::xattn::cuda;

constexpr std::string_view kOp = "xattention";

bool accepts_scores(const XattnScoreProblem& problem) {
  const at::Tensor& q = problem.operands.q;
  const at::ScalarType dtype = q.scalar_type();
  return q.is_cuda() && q.size(2) <= 256 &&
         (dtype == at::kHalf || dtype == at::kBFloat16 || dtype == at::kFloat);
}

device::Type type_of(const at::Tensor& x) {
  if (x.scalar_type() == at::kFloat) return device::Type::kF32;
  return x.scalar_type() == at::kHalf ? device::Type::kF16 : device::Type::kBF16;
}

void scores(const XattnScoreProblem& problem) {
  const AttentionProblem& operands = problem.operands;
  const at::Tensor cu_q = operands.cu_seqlens_q.to(operands.q.device(), true).contiguous();
  const at::Tensor cu_k = operands.cu_seqlens_k.to(operands.q.device(), true).contiguous();
  device::ScoreArgs args;
  args.cu_seqlens_q = cu_q.const_data_ptr<int32_t>();
  args.cu_seqlens_k = cu_k.const_data_ptr<int32_t>();
  args.batch = cu_q.numel() - 1;
  args.heads = operands.q.size(1);
  args.kv_heads = operands.k.size(1);
  args.head_dim = operands.q.size(2);
  args.total_q = operands.q.size(0);
  args.total_k = operands.k.size(0);
  args.max_seqlen_q = operands.longest_q;
  args.max_seqlen_k = operands.longest_k;
  args.causal = operands.causal;
  args.scale = static_cast<float>(operands.scale);
  args.type = type_of(operands.q);
  args.q = operands.q.const_data_ptr();
  args.q_token_stride = operands.q.stride(0);
  args.q_head_stride = operands.q.stride(1);
  args.k = operands.k.const_data_ptr();
  args.k_token_stride = operands.k.stride(0);
  args.k_head_stride = operands.k.stride(1);
  args.estimator = problem.estimator;
  args.block_size = problem.block_size;
  args.scores = problem.scores.mutable_data_ptr<float>();
  args.score_heads = problem.scores.size(1);
  args.query_blocks = problem.scores.size(2);
  args.key_blocks = problem.scores.size(3);
  const c10::Stream stream = device_stream(kOp, operands.q);
  const at::Tensor workspace = at::empty({device::block_scores_workspace_bytes(args)},
                                         problem.scores.options().dtype(at::kByte));
  args.workspace = workspace.mutable_data_ptr();
  check_launch(kOp, device::block_scores(args, stream.native_handle()));
}

bool accepts_select(const XattnSelectProblem& problem) { return problem.scores.is_cuda(); }

void select(const XattnSelectProblem& problem) {
  const at::Tensor cu_q = problem.cu_seqlens_q.to(problem.scores.device(), true).contiguous();
  const at::Tensor cu_k = problem.cu_seqlens_k.to(problem.scores.device(), true).contiguous();
  kernels::xattn::SelectArgs args = xattn_select_args(problem);
  args.cu_seqlens_q = cu_q.const_data_ptr<int32_t>();
  args.cu_seqlens_k = cu_k.const_data_ptr<int32_t>();
  const c10::Stream stream = device_stream(kOp, problem.scores);
  check_launch(kOp, device::select(args, stream.native_handle()));
}

constexpr XattnImplementation kCuda = {"cuda", accepts_scores, scores, accepts_select, select};

}  // namespace

std::span<const XattnImplementation* const> xattn_device_implementations() {
  static constexpr std::array kAll = {&kCuda};
  return kAll;
}

}  // namespace longspur::ops
