// Attention in which a block of 128 queries reads only chosen blocks of keys, forward and backward,
// CPU. Formulas, masks, empty rows and gradients are those of kernels/attention/varlen.h with the
// sum over the keys of chosen blocks that the query sees: a query that sees none has out 0, lse
// -inf and no gradient.
//
// (Guo et al., Block-Sparse-Attention, 2024; Dao et al., FlashAttention, 2022, section 3.3.)
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels/attention/varlen.h"
#include "kernels/common/block_mask.h"

namespace longspur::kernels::block_sparse {

struct ForwardArgs {
  attention::VarlenForwardArgs dense;
  BlockMask mask;
};
struct BackwardArgs {
  attention::VarlenBackwardArgs dense;
  BlockMask mask;
};

// bool [B, heads, query_blocks, key_blocks] to the words of a mask and back; one thread.
void pack_mask(const uint8_t* blocks, int64_t rows, int64_t key_blocks, uint32_t* words);
void unpack_mask(const uint32_t* words, int64_t rows, int64_t key_blocks, uint8_t* blocks);

// How the heads of one launch differ; a mode becomes bits.
enum class HeadMode : int32_t {
  kDense,      // every block
  kStreaming,  // the first `sink` blocks and the last `local` ones up to the diagonal
  kList,       // as given
};
struct HeadPlan {
  HeadMode mode = HeadMode::kList;
  int64_t sink = 0, local = 0;  // kStreaming: blocks
};
// Overwrites the rows of heads that are not kList. plans: [mask heads]. cu_seqlens as in
// VarlenShape.
void apply_head_plans(const HeadPlan* plans,
                      const attention::VarlenShape& shape,
                      const BlockMask& mask,
                      uint32_t* words);

// Items and scratch as in attention::VarlenForward and VarlenBackward.
class Forward {
 public:
  explicit Forward(const ForwardArgs& args);
  int64_t items() const { return item_begins_.back(); }
  int64_t scratch_bytes() const;
  void run(int64_t item, std::byte* scratch) const;

 private:
  ForwardArgs args_;
  int64_t heads_a_tile_, tokens_a_tile_;
  std::vector<int64_t> item_begins_;  // [B + 1]
};

class Backward {
 public:
  static constexpr int kPhases = 3;
  explicit Backward(const BackwardArgs& args);
  int64_t items(int phase) const;
  int64_t scratch_bytes() const;
  int64_t workspace_bytes() const;
  void run(int phase, int64_t item, std::byte* scratch, std::byte* workspace) const;

 private:
  BackwardArgs args_;
};

// Reference: loops in double over any dtype and head size; one thread.
void forward_ref(const ForwardArgs& args);
void backward_ref(const BackwardArgs& args);

}  // namespace longspur::kernels::block_sparse
