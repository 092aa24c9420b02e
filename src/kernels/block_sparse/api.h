// Attention in which a block of 128 queries reads only chosen blocks of keys, forward and backward,
// CPU. Formulas, masks, empty rows and gradients are those of kernels/attention/varlen.h with the
// sum over the keys of chosen blocks that the query sees: a query that sees none has out 0, lse
// -inf and no gradient.
//
// (Guo et al., Block-Sparse-Attention, 2024; Dao et al., FlashAttention, 2022, section 3.3.)
#pragma once

#include <cstddef>
#include <cstdint>

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

// bool [B, heads, query_blocks, key_blocks] to the words of a mask and back; one thread. Bits
// beyond the key blocks are written as 0 and not read.
void pack_mask(const uint8_t* blocks, int64_t rows, int64_t key_blocks, uint32_t* words);
void unpack_mask(const uint32_t* words, int64_t rows, int64_t key_blocks, uint8_t* blocks);

// Throws Error where a mask does not fit the sequences of a shape. Words may be null only where
// none are read.
void check_mask(const BlockMask& mask, const attention::VarlenShape& shape);

// How the heads of one launch differ; a mode becomes bits.
enum class HeadMode : int32_t {
  kDense,      // every block
  kStreaming,  // the first `sink` blocks and the last `local` ones that the query block sees
  kList,       // as given
};
struct HeadPlan {
  HeadMode mode = HeadMode::kList;
  int64_t sink = 0, local = 0;  // kStreaming: blocks
};
// Overwrites the rows of heads that are not kList; words: those of the mask, which need not point
// to them. plans: [mask heads].
void apply_head_plans(const HeadPlan* plans,
                      const attention::VarlenShape& shape,
                      const BlockMask& mask,
                      uint32_t* words);

// Items and scratch as in attention::VarlenForward and VarlenBackward, whose tiles these are; the
// longest items come first. The words must outlive them. Throws what check_mask does.
class Forward {
 public:
  explicit Forward(const ForwardArgs& args);
  int64_t items() const { return tiles_.items(); }
  int64_t scratch_bytes() const { return tiles_.scratch_bytes(); }
  void run(int64_t item, std::byte* scratch) const { tiles_.run(item, scratch); }

 private:
  attention::VarlenForward tiles_;
};

class Backward {
 public:
  static constexpr int kPhases = attention::VarlenBackward::kPhases;
  explicit Backward(const BackwardArgs& args);
  int64_t items(int phase) const { return tiles_.items(phase); }
  int64_t scratch_bytes() const { return tiles_.scratch_bytes(); }
  int64_t workspace_bytes() const { return tiles_.workspace_bytes(); }
  void run(int phase, int64_t item, std::byte* scratch, std::byte* workspace) const {
    tiles_.run(phase, item, scratch, workspace);
  }

 private:
  attention::VarlenBackward tiles_;
};

// Reference: loops in double over any dtype and head size; one thread.
void forward_ref(const ForwardArgs& args);
void backward_ref(const BackwardArgs& args);

}  // namespace longspur::kernels::block_sparse
