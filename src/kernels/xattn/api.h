// Which blocks of keys a block of queries needs: scores (estimator.h) and their selection, CPU.
//
// (Xu et al., "XAttention: Block Sparse Attention with Antidiagonal Scoring", ICML 2025.)
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels/attention/varlen.h"
#include "kernels/common/block_mask.h"
#include "kernels/xattn/estimator.h"

namespace longspur::kernels::xattn {

struct ScoreArgs {
  attention::VarlenShape shape;  // scale: of the attention the scores are for
  attention::ConstRows q, k;
  Estimator estimator;
  int64_t block_size = 128;
  // [B, score_heads, query_blocks, key_blocks] fp32, every element written: 0 where nothing is
  // seen. score_heads: H, or G (the mean over the heads of a KV group).
  float* scores = nullptr;
  int64_t score_heads = 0;
  int64_t query_blocks = 0, key_blocks = 0;  // of the longest sequences
  // Null, or [T, H], rows at lse_stride: natural log-sum-exp over every visible key, of the queries
  // that the terms sampled and outlier read; others are left as they are. With the log-sum-exp of
  // the kept keys, which attention gives, the mass that a query misses is 1 - exp(kept - this).
  float* row_lse = nullptr;
  int64_t lse_stride = 0;
};

// Items and phases as in attention::VarlenBackward; phase 0 brings keys into blocks and takes their
// means. Operands fp32, bf16 or fp16, D up to attention::kMaxVarlenDim; workspace and scratch are
// linear in the number of keys.
class BlockScores {
 public:
  static constexpr int kPhases = 2;
  explicit BlockScores(const ScoreArgs& args);
  int64_t items(int phase) const;
  int64_t scratch_bytes() const;
  int64_t workspace_bytes() const;
  void run(int phase, int64_t item, std::byte* scratch, std::byte* workspace) const;

 private:
  void pack(int64_t item, std::byte* scratch, std::byte* workspace) const;
  void score(int64_t item, std::byte* scratch, std::byte* workspace) const;

  ScoreArgs args_;
  int64_t longest_k_ = 0;
  std::vector<int64_t> pack_items_, key_offsets_;  // [B + 1]
};
void block_scores_ref(const ScoreArgs& args);  // double, one thread

enum class Rule : int32_t {
  kShare,  // the fewest blocks whose scores hold at least `threshold` of the row's
  kOfMax,  // every block with at least `threshold` of the row's largest score
};

struct SelectOptions {
  Rule rule = Rule::kShare;
  int64_t block_size = 128;
  int64_t sink_blocks = 1;  // kept at the front
  // Kept at the end: the blocks on the diagonal count as one; 0: none. Not causal: the blocks in
  // which the rows' own positions lie, and local_blocks - 1 on each side.
  int64_t local_blocks = 1;
  bool causal = true;
};

// One row: n queries, m keys of the sequence, query block i. scores: [key_blocks], read up to the
// visible ones. Forced blocks F are kept and their score counts: with u the other visible blocks by
// falling score, lower index first, block u_j is kept when F + u_1 + ... + u_{j-1} < threshold *
// total. Sums are of integers (scores relative to the row's largest, 40 bits), so that every
// machine selects the same blocks (select_math.h). kShare with threshold >= 1 keeps all blocks
// whose score is above 0. A row with a score that is NaN, infinite or negative, or with a threshold
// that is NaN, keeps every visible block. Writes `row_words` words.
struct RowStats {
  int32_t kept = 0, visible = 0;
  float kept_share = 1.0f;  // of the scores
};
RowStats select_row(const float* scores,
                    float threshold,
                    int64_t i,
                    int64_t n,
                    int64_t m,
                    const SelectOptions& options,
                    uint32_t* words,
                    int64_t row_words);

struct SelectArgs {
  const float* scores = nullptr;     // [B, heads, query_blocks, key_blocks]
  const float* threshold = nullptr;  // [heads]
  const int32_t* cu_seqlens_q = nullptr;
  const int32_t* cu_seqlens_k = nullptr;
  int64_t batch = 0, heads = 0, query_blocks = 0, key_blocks = 0;
  SelectOptions options;
  // [B, heads, query_blocks, BlockMask::words_of(key_blocks)]: all written
  uint32_t* words = nullptr;
  RowStats* stats = nullptr;  // [B, heads, query_blocks] or null
};
// Row r of batch * heads * query_blocks; rows do not depend on each other.
void select(const SelectArgs& args, int64_t begin, int64_t end);
void select_ref(const SelectArgs& args);  // by sorting; one thread

}  // namespace longspur::kernels::xattn
