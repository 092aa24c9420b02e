// xattention as its schemas have it: options one by one.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <string_view>
#include <tuple>

#include "ops/xattn.h"

namespace longspur {

// F(q, k, v, ..., threshold, options): with the signature of ops::xattention.
template <auto F>
std::tuple<at::Tensor, at::Tensor, at::Tensor> xattention(const at::Tensor& q,
                                                          const at::Tensor& k,
                                                          const at::Tensor& v,
                                                          const at::Tensor& cu_seqlens_q,
                                                          const at::Tensor& cu_seqlens_k,
                                                          int64_t max_seqlen_q,
                                                          int64_t max_seqlen_k,
                                                          const at::Tensor& threshold,
                                                          std::string_view estimator,
                                                          int64_t stride,
                                                          int64_t block_size,
                                                          bool causal,
                                                          std::optional<double> scale,
                                                          int64_t sink_blocks,
                                                          int64_t local_blocks,
                                                          bool per_kv_group,
                                                          std::string_view rule,
                                                          bool deterministic) {
  return F(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, threshold,
           {estimator, stride, block_size, causal, scale, sink_blocks, local_blocks, per_kv_group,
            rule, deterministic});
}

// F with the signature of ops::xattention_mask.
template <auto F>
std::tuple<at::Tensor, at::Tensor> xattention_mask(const at::Tensor& q,
                                                   const at::Tensor& k,
                                                   const at::Tensor& cu_seqlens_q,
                                                   const at::Tensor& cu_seqlens_k,
                                                   int64_t max_seqlen_q,
                                                   int64_t max_seqlen_k,
                                                   const at::Tensor& threshold,
                                                   std::string_view estimator,
                                                   int64_t stride,
                                                   int64_t block_size,
                                                   bool causal,
                                                   std::optional<double> scale,
                                                   int64_t sink_blocks,
                                                   int64_t local_blocks,
                                                   bool per_kv_group,
                                                   std::string_view rule) {
  return F(q, k, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, threshold,
           {estimator, stride, block_size, causal, scale, sink_blocks, local_blocks, per_kv_group,
            rule});
}

}  // namespace longspur
