// XAttention as torch operations: estimate which blocks of keys each block of 128 queries needs,
// choose them, attend to them. Estimators are those of kernels/xattn/estimator.h, the rules of
// selection those of kernels/xattn/api.h. Arguments as of ops/attention.h and ops/block_sparse.h.
//
// Scores and choices are steps of their inputs: no gradient goes through them.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <string_view>
#include <tuple>

namespace longspur::ops {

// [B, H, nQ, nK] float32, or [B, G, nQ, nK]: the mean over the heads of a KV group. Each row of a
// query block is a share of attention over the key blocks; 0 where it sees nothing. `stride` is
// that of estimator terms that name none. `scale` is the attention's.
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
                              bool per_kv_group);

// bool, the shape of scores: the blocks that `rule` keeps ("share": the fewest that hold
// `threshold` of a row's scores; "of_max": those of at least `threshold` times its largest), with
// the first `sink_blocks` and the last `local_blocks` visible ones always among them. threshold:
// float32, [] or [H], each from 0 to 1, on the CPU or scores' device; its values are checked, which
// on another device waits for it. A row with a NaN keeps every visible block.
at::Tensor xattn_select(const at::Tensor& scores,
                        const at::Tensor& threshold,
                        const at::Tensor& cu_seqlens_q,
                        const at::Tensor& cu_seqlens_k,
                        int64_t block_size,
                        int64_t sink_blocks,
                        int64_t local_blocks,
                        bool causal,
                        std::string_view rule);

// What xattention's arguments say besides operands and lengths.
struct XattentionOptions {
  std::string_view estimator;
  int64_t stride, block_size;
  bool causal;
  std::optional<double> scale;
  int64_t sink_blocks, local_blocks;
  bool per_kv_group;
  std::string_view rule;
  bool deterministic = false;  // of the backward
};

// What needs no values.
void check_xattention(const at::Tensor& q,
                      const at::Tensor& k,
                      const at::Tensor& v,
                      const at::Tensor& cu_seqlens_q,
                      const at::Tensor& cu_seqlens_k,
                      int64_t max_seqlen_q,
                      int64_t max_seqlen_k,
                      const at::Tensor& threshold,
                      const XattentionOptions& options);

// The choice alone: mask bool [B, H, nQ, nK] ([B, G, nQ, nK] with per_kv_group) and density float32
// [B, H], the share of the visible blocks that are kept; 1 where none is visible.
std::tuple<at::Tensor, at::Tensor> xattention_mask(const at::Tensor& q,
                                                   const at::Tensor& k,
                                                   const at::Tensor& cu_seqlens_q,
                                                   const at::Tensor& cu_seqlens_k,
                                                   int64_t max_seqlen_q,
                                                   int64_t max_seqlen_k,
                                                   const at::Tensor& threshold,
                                                   const XattentionOptions& options);

// Out, lse and density without autograd.
std::tuple<at::Tensor, at::Tensor, at::Tensor> xattention_forward(const at::Tensor& q,
                                                                  const at::Tensor& k,
                                                                  const at::Tensor& v,
                                                                  const at::Tensor& cu_seqlens_q,
                                                                  const at::Tensor& cu_seqlens_k,
                                                                  int64_t max_seqlen_q,
                                                                  int64_t max_seqlen_k,
                                                                  const at::Tensor& threshold,
                                                                  const XattentionOptions& options);

// The same with gradients of q, k and v through out and lse, the mask held fixed.
std::tuple<at::Tensor, at::Tensor, at::Tensor> xattention(const at::Tensor& q,
                                                          const at::Tensor& k,
                                                          const at::Tensor& v,
                                                          const at::Tensor& cu_seqlens_q,
                                                          const at::Tensor& cu_seqlens_k,
                                                          int64_t max_seqlen_q,
                                                          int64_t max_seqlen_k,
                                                          const at::Tensor& threshold,
                                                          const XattentionOptions& options);

}  // namespace longspur::ops
