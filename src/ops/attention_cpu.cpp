// Attention on the CPU: torch tensors to the pointers and strides of kernels/attention.
#include "ops/attention_cpu.h"

#include "base/aligned_buffer.h"
#include "ops/attention_shape.h"
#include "ops/dtype.h"
#include "ops/parallel.h"

namespace longspur::ops {

namespace {

namespace kernel = kernels::attention;

kernel::Rows mutable_rows(const at::Tensor& tensor) {
  return {tensor.mutable_data_ptr(), tensor.stride(0), tensor.stride(1)};
}

}  // namespace

kernel::VarlenShape varlen_shape(const AttentionProblem& problem) {
  kernel::VarlenShape shape;
  shape.cu_seqlens_q = problem.host_seqlens_q.const_data_ptr<int32_t>();
  shape.cu_seqlens_k = problem.host_seqlens_k.const_data_ptr<int32_t>();
  shape.batch = problem.host_seqlens_q.numel() - 1;
  shape.heads = problem.q.size(1);
  shape.kv_heads = problem.k.size(1);
  shape.head_dim = problem.q.size(2);
  shape.causal = problem.causal;
  shape.scale = problem.scale;
  shape.dtype = dtype_of(problem.q);
  return shape;
}

kernel::ConstRows varlen_rows(const at::Tensor& tensor) {
  return {tensor.const_data_ptr(), tensor.stride(0), tensor.stride(1)};
}
kernel::VarlenForwardArgs varlen_forward_args(const AttentionProblem& problem,
                                              const at::Tensor& out,
                                              const at::Tensor& lse) {
  kernel::VarlenForwardArgs args;
  args.shape = varlen_shape(problem);
  args.q = varlen_rows(problem.q);
  args.k = varlen_rows(problem.k);
  args.v = varlen_rows(problem.v);
  args.out = mutable_rows(out);
  args.lse = lse.mutable_data_ptr();
  args.lse_stride = lse.stride(0);
  return args;
}

kernel::VarlenBackwardArgs varlen_backward_args(const AttentionProblem& problem,
                                                const AttentionGradients& gradients,
                                                const AttentionGradient& results) {
  kernel::VarlenBackwardArgs args;
  args.shape = varlen_shape(problem);
  args.q = varlen_rows(problem.q);
  args.k = varlen_rows(problem.k);
  args.v = varlen_rows(problem.v);
  args.out = varlen_rows(gradients.out);
  args.grad_out = varlen_rows(gradients.grad_out);
  args.lse = gradients.lse.const_data_ptr();
  args.lse_stride = gradients.lse.stride(0);
  if (gradients.grad_lse) {
    args.grad_lse = gradients.grad_lse->const_data_ptr();
    args.grad_lse_stride = gradients.grad_lse->stride(0);
  }
  args.dq = mutable_rows(std::get<0>(results));
  args.dk = mutable_rows(std::get<1>(results));
  args.dv = mutable_rows(std::get<2>(results));
  return args;
}

bool attention_on_cpu(const AttentionProblem& problem) { return problem.q.device().is_cpu(); }

bool attention_fits_cpu_tiles(const AttentionProblem& problem) {
  return attention_on_cpu(problem) && problem.q.scalar_type() != at::kDouble &&
         problem.q.size(2) <= kernel::kMaxVarlenDim;
}

namespace {

AttentionResult tiles_forward(const AttentionProblem& problem) {
  const AttentionResult result = attention_outputs(problem.q);
  const kernel::VarlenForward forward(
      varlen_forward_args(problem, std::get<0>(result), std::get<1>(result)));
  for_each_item(forward.items(), forward.scratch_bytes(),
                [&](int64_t item, std::byte* scratch) { forward.run(item, scratch); });
  return result;
}

AttentionGradient tiles_backward(const AttentionProblem& problem,
                                 const AttentionGradients& gradients) {
  const AttentionGradient result = attention_gradients(problem.q, problem.k, problem.v);
  const kernel::VarlenBackward backward(varlen_backward_args(problem, gradients, result));
  AlignedBuffer workspace{static_cast<size_t>(backward.workspace_bytes())};
  for (int phase = 0; phase < kernel::VarlenBackward::kPhases; ++phase) {
    for_each_item(backward.items(phase), backward.scratch_bytes(),
                  [&](int64_t item, std::byte* scratch) {
                    backward.run(phase, item, scratch, workspace.data());
                  });
  }
  return result;
}

AttentionResult reference_forward(const AttentionProblem& problem) {
  const AttentionResult result = attention_outputs(problem.q);
  kernel::varlen_forward_ref(
      varlen_forward_args(problem, std::get<0>(result), std::get<1>(result)));
  return result;
}

AttentionGradient reference_backward(const AttentionProblem& problem,
                                     const AttentionGradients& gradients) {
  const AttentionGradient result = attention_gradients(problem.q, problem.k, problem.v);
  kernel::varlen_backward_ref(varlen_backward_args(problem, gradients, result));
  return result;
}

}  // namespace

const AttentionImplementation kAttentionCpuTiles = {"cpu_tiles", attention_fits_cpu_tiles,
                                                    tiles_forward, tiles_backward};
const AttentionImplementation kAttentionCpuReference = {"cpu_reference", attention_on_cpu,
                                                        reference_forward, reference_backward};

}  // namespace longspur::ops
