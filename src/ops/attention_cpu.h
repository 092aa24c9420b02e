// From tensors to the arguments of the CPU kernels. Private to ops/.
#pragma once

#include "kernels/attention/varlen.h"
#include "ops/attention_impl.h"

namespace longspur::ops {

kernels::attention::VarlenShape varlen_shape(const AttentionProblem& problem);
kernels::attention::ConstRows varlen_rows(const at::Tensor& tensor);
kernels::attention::VarlenForwardArgs varlen_forward_args(const AttentionProblem& problem,
                                                          const at::Tensor& out,
                                                          const at::Tensor& lse);
kernels::attention::VarlenBackwardArgs varlen_backward_args(const AttentionProblem& problem,
                                                            const AttentionGradients& gradients,
                                                            const AttentionGradient& results);

bool attention_on_cpu(const AttentionProblem& problem);
// 16-bit and float32 operands with heads that fit a tile: what the vectorised kernels take.
bool attention_fits_cpu_tiles(const AttentionProblem& problem);

}  // namespace longspur::ops
