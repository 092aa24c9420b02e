// The checks of XAttention's operations that do not need values, and the shapes of their results.
// The operations and their Meta kernels call the same functions.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string_view>
#include <tuple>

#include "kernels/xattn/api.h"
#include "ops/attention_shape.h"

namespace longspur::ops {

struct XattnScoreArgs {
  AttentionArgs dense;  // v: k again where the operation has none
  std::string_view estimator;
  int64_t stride, block_size;
  bool per_kv_group;
};

void check_xattn_scores(std::string_view op, const XattnScoreArgs& args);
kernels::xattn::Estimator xattn_estimator(std::string_view op,
                                          const XattnScoreArgs& args,
                                          int64_t longest_k);
at::Tensor xattn_scores_output(const XattnScoreArgs& args);

struct XattnSelectArgs {
  const at::Tensor& scores;     // [B, H, nQ, nK] float32
  const at::Tensor& threshold;  // [] or [H] float32
  const at::Tensor& cu_seqlens_q;
  const at::Tensor& cu_seqlens_k;
  int64_t block_size, sink_blocks, local_blocks;
  bool causal;
  std::string_view rule;
};

// The parts that do not look at scores are also xattention's.
void check_xattn_threshold(std::string_view op,
                           const at::Tensor& threshold,
                           const at::Tensor& data,
                           const c10::SymInt& heads);
kernels::xattn::SelectOptions xattn_select_options(std::string_view op,
                                                   int64_t block_size,
                                                   int64_t sink_blocks,
                                                   int64_t local_blocks,
                                                   bool causal,
                                                   std::string_view rule);
void check_xattn_select(std::string_view op, const XattnSelectArgs& args);

// Heads of xattention's mask: H, or G.
c10::SymInt xattn_mask_heads(const XattnScoreArgs& args);
// [B, H]
at::Tensor xattention_density_output(const at::Tensor& q, const at::Tensor& cu_seqlens_q);

}  // namespace longspur::ops
