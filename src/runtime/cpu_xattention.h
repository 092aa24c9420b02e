// XAttention in the CPU executor: per step and layer, the blocks of keys that the query blocks of
// prompts read.
#pragma once

#include <cstdint>
#include <vector>

#include "base/aligned_buffer.h"
#include "base/thread_pool.h"
#include "kernels/attention/paged.h"
#include "kernels/xattn/paged.h"
#include "runtime/attention_plan.h"
#include "runtime/executor.h"

namespace longspur::runtime {

class CpuXattention {
 public:
  CpuXattention(const XattentionPlan& plan, const io::ModelConfig& config, int64_t max_context);

  // Means of keys, beside each page of the cache; 0: the estimator needs none.
  int64_t page_bytes() const;
  void allocate_pages(int64_t pages);
  int64_t workspace_bytes() const {
    return int64_t(words_.size() + means_.size() + workspace_.size());
  }

  // Once a step, by one thread: which sequences are sparse, and buffers for them. kv: type and
  // sizes of the cache.
  void prepare(const ForwardBatch& batch, const kernels::attention::PagedKv& kv, int threads);

  // What attention of this step may be given, for the size of its workspace; null: all is dense.
  const kernels::attention::PagedMask* mask() const { return sparse_.empty() ? nullptr : &mask_; }

  // SPMD, after rope_append: the layer's mask, or null where it is dense. Valid until the next
  // call.
  struct Layer {
    int64_t index = 0;
    const float* q = nullptr;  // [T, H, D], rows at stride ldq
    int64_t ldq = 0;
    float scale = 0.0f;
  };
  const kernels::attention::PagedMask* select(Team& team,
                                              const Layer& layer,
                                              const ForwardBatch& batch,
                                              const kernels::attention::PagedKv& kv);

  const AttentionStats& stats() const { return stats_; }
  void reset_stats() { stats_ = {}; }

 private:
  struct Sparse {  // rows of a prompt in this step that are read sparsely
    int64_t b = 0;
    int32_t rows[2] = {0, 0};  // cu_seqlens of the sequence alone
    int64_t first_row = 0, first_block = 0, query_blocks = 0;
    kernels::xattn::Estimator estimator;
    XattentionPolicy::Blocks blocks;  // of the prompt that are not dense by plan
    std::vector<float> threshold;     // [mask heads] of the request; empty: the plan's
  };
  void add_sequence(const ForwardBatch& batch, int64_t b);
  bool is_dense(int64_t layer) const;
  kernels::xattn::PagedSelectArgs arguments(const Sparse& sparse, const Layer& layer);
  static bool may_be_sparse(const Sparse& sparse, int64_t i);  // query block i of the step
  // Gives every block to the query blocks that the plan keeps dense, and counts all of them.
  void finish(const Sparse& sparse, const ForwardBatch& batch);
  void count_dense(const ForwardBatch& batch, bool all);
  void count_dense_blocks(const ForwardBatch& batch, int64_t b, int64_t first, int64_t last);

  XattentionPolicy policy_;
  int64_t heads_, head_dim_;
  bool needs_means_;
  std::vector<float> plan_thresholds_;  // [layers, mask heads]
  AlignedBuffer means_;                 // [pool pages, D] fp32
  AlignedBuffer words_, workspace_;
  std::vector<kernels::xattn::RowStats> rows_;  // [B, mask heads, query blocks]
  std::vector<uint8_t> reselected_;             // likewise
  std::vector<uint8_t> use_;                    // [B]
  std::vector<Sparse> sparse_;
  bool overwrites_ = false;  // some query block of sparse_ is dense by plan
  kernels::attention::PagedMask mask_;
  AttentionStats stats_;
};

}  // namespace longspur::runtime
