// The implementations of XAttention's scores and selection, best first; each says what it accepts.
// Private to ops/.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <span>
#include <string_view>

#include "kernels/xattn/api.h"
#include "ops/attention_impl.h"

namespace longspur::ops {

// Checked; nothing is empty. v of the operands is not read.
struct XattnScoreProblem {
  AttentionProblem operands;
  kernels::xattn::Estimator estimator;
  int64_t block_size = 128;
  at::Tensor scores;  // [B, H or G, nQ, nK] float32, contiguous: the result
};

struct XattnSelectProblem {
  at::Tensor scores;                          // [B, heads, nQ, nK] float32, contiguous
  at::Tensor threshold;                       // [heads] float32 on scores' device, contiguous
  at::Tensor cu_seqlens_q, cu_seqlens_k;      // as given: CPU or device
  at::Tensor host_seqlens_q, host_seqlens_k;  // on the CPU
  kernels::xattn::SelectOptions options;
  at::Tensor words;  // [B, heads, nQ, words] int32: the result
  at::Tensor stats;  // [B, heads, nQ, 3] int32: kernels::xattn::RowStats; undefined: not wanted
};

struct XattnImplementation {
  std::string_view name;
  bool (*accepts_scores)(const XattnScoreProblem&);
  void (*scores)(const XattnScoreProblem&);
  bool (*accepts_select)(const XattnSelectProblem&);
  void (*select)(const XattnSelectProblem&);
};

extern const XattnImplementation kXattnCpu;   // kernels/xattn, on torch's threads
extern const XattnImplementation kXattnHost;  // any device: copies to the CPU and back
// Those of this build's devices, before the two above: chosen by the sources that CMake names.
std::span<const XattnImplementation* const> xattn_device_implementations();

kernels::xattn::SelectArgs xattn_select_args(const XattnSelectProblem& problem);

}  // namespace longspur::ops
