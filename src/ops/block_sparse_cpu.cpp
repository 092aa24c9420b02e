// Block-sparse attention on the CPU: kernels/block_sparse on torch's threads.
#include "base/aligned_buffer.h"
#include "kernels/block_sparse/api.h"
#include "ops/attention_cpu.h"
#include "ops/block_words.h"
#include "ops/parallel.h"

namespace longspur::ops {

namespace {

namespace kernel = kernels::block_sparse;

kernel::ForwardArgs forward_args(const AttentionProblem& problem, const AttentionResult& result) {
  return {varlen_forward_args(problem, std::get<0>(result), std::get<1>(result)),
          block_mask_of(problem.block_words, problem.block_size)};
}

kernel::BackwardArgs backward_args(const AttentionProblem& problem,
                                   const AttentionGradients& gradients,
                                   const AttentionGradient& result) {
  return {varlen_backward_args(problem, gradients, result),
          block_mask_of(problem.block_words, problem.block_size)};
}

AttentionResult tiles_forward(const AttentionProblem& problem) {
  const AttentionResult result = attention_outputs(problem.q);
  const kernel::Forward forward(forward_args(problem, result));
  for_each_item(forward.items(), forward.scratch_bytes(),
                [&](int64_t item, std::byte* scratch) { forward.run(item, scratch); });
  return result;
}

AttentionGradient tiles_backward(const AttentionProblem& problem,
                                 const AttentionGradients& gradients) {
  const AttentionGradient result = attention_gradients(problem.q, problem.k, problem.v);
  const kernel::Backward backward(backward_args(problem, gradients, result));
  AlignedBuffer workspace{static_cast<size_t>(backward.workspace_bytes())};
  for (int phase = 0; phase < kernel::Backward::kPhases; ++phase) {
    for_each_item(backward.items(phase), backward.scratch_bytes(),
                  [&](int64_t item, std::byte* scratch) {
                    backward.run(phase, item, scratch, workspace.data());
                  });
  }
  return result;
}

AttentionResult reference_forward(const AttentionProblem& problem) {
  const AttentionResult result = attention_outputs(problem.q);
  kernel::forward_ref(forward_args(problem, result));
  return result;
}

AttentionGradient reference_backward(const AttentionProblem& problem,
                                     const AttentionGradients& gradients) {
  const AttentionGradient result = attention_gradients(problem.q, problem.k, problem.v);
  kernel::backward_ref(backward_args(problem, gradients, result));
  return result;
}

}  // namespace

const AttentionImplementation kBlockSparseCpuTiles = {"cpu_tiles", attention_fits_cpu_tiles,
                                                      tiles_forward, tiles_backward};
const AttentionImplementation kBlockSparseCpuReference = {"cpu_reference", attention_on_cpu,
                                                          reference_forward, reference_backward};

}  // namespace longspur::ops
