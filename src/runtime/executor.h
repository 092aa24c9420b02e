// Runs a model over a packed batch with a paged cache. One implementation a device.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "kernels/sampling/api.h"

namespace longspur::runtime {

// Tokens of several sequences, packed. Sequence b owns tokens cu_seqlens[b] .. cu_seqlens[b + 1];
// they are the last ones of its kv_lens[b] tokens, which all have pages.
struct ForwardBatch {
  std::span<const int32_t> tokens;      // [T]
  std::span<const int32_t> cu_seqlens;  // [B + 1]
  std::span<const int32_t> kv_lens;     // [B]
  // [B] length the dynamic rope scaling is taken at: of the whole prompt while it is prefilled.
  std::span<const int32_t> rope_lens;
  std::span<const int32_t> block_table;  // [layers, B, G, max_blocks] page ids
  // Entries of a row; its last ones are the sequence's side pages, if the cache has them.
  int64_t max_blocks = 0;
  std::span<const int32_t> output_rows;  // [R] rows whose logits are wanted, rising
  // [B] rows at positions below are a prompt's, which may be attended to sparsely; the rows of a
  // sequence lie all before or all after it. Empty: nothing is sparse.
  std::span<const int32_t> prompt_lens;
  // [B] of sparse selection, from 0 to 1, for all heads; kPlanThreshold: those of the plan.
  std::span<const float> thresholds;
  static constexpr float kPlanThreshold = -1.0f;

  bool is_prompt(int64_t b) const {
    return !prompt_lens.empty() && kv_lens[size_t(b)] <= prompt_lens[size_t(b)];
  }
};

// Share of a batch's rows that are a prompt's.
double prompt_share(const ForwardBatch& batch);

// What attention did since the executor was made, or since the last reset. Blocks are query blocks:
// 128 rows of one mask head of one layer of a prompt. Keys are counted in blocks of the plan.
struct AttentionStats {
  double prefill_s = 0;        // attention of prompts, with the choice of blocks
  int64_t blocks = 0;          // in layers that may be sparse; 0: the plan is dense
  int64_t dense_blocks = 0;    // of these: read all keys, by plan or because it is cheaper
  int64_t guarded_blocks = 0;  // chosen again because too little was kept
  int64_t visible_keys = 0, kept_keys = 0;
  double kept_share_sum = 0;  // of attention, estimated, over the blocks that are not dense
  double min_kept_share = 1;

  // Share of the keys of a dense prefill that were read.
  double density() const {
    return visible_keys > 0 ? double(kept_keys) / double(visible_keys) : 1.0;
  }
  int64_t sparse_blocks() const { return blocks - dense_blocks; }
};

// What a draw on the device gives; a row that cannot be drawn from (a NaN logit) says why.
struct Draw {
  kernels::sampling::SampleResult result;
  std::string error;
};

class Executor {
 public:
  virtual ~Executor() = default;

  virtual int64_t weights_bytes() const = 0;
  virtual int64_t workspace_bytes() const = 0;
  // Bytes of one page: 64 tokens of one KV head of one layer, keys and values.
  virtual int64_t page_bytes() const = 0;
  // The page pool; called once, before the first forward.
  virtual void allocate_pages(int64_t pages) = 0;

  // Computes the batch, appending to the cache. At most the max_tokens the executor was made for.
  virtual void forward(const ForwardBatch& batch) = 0;
  // Logits [count, V] fp32 on the host of outputs first .. first + count of the last forward; valid
  // until the next call. count <= kLogitRows.
  static constexpr int64_t kLogitRows = 32;
  virtual const float* logits(int64_t first, int64_t count) = 0;

  virtual AttentionStats attention_stats() = 0;
  virtual void reset_attention_stats() = 0;

  // Draws a token from each output of the last forward where the logits are: args[i] (its logits
  // are not read) to draws[i]. False, and nothing drawn: take logits() and draw on the host.
  virtual bool sample(std::span<const kernels::sampling::SampleArgs> args, std::span<Draw> draws) {
    static_cast<void>(args);
    static_cast<void>(draws);
    return false;
  }
};

}  // namespace longspur::runtime
