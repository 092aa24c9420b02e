// Dense attention over packed sequences of different lengths, forward and backward.
//
//   s[i, j]  = scale * q[i] . k[j]           for every key j that query i sees
//   lse[i]   = log sum_j exp(s[i, j])
//   out[i]   = sum_j exp(s[i, j] - lse[i]) v[j]
//
// Query head h reads KV head h / (H / G). With `causal`, the last query of a sequence stands at its
// last key: query i of n sees keys j <= i + (m - n) of m. A query that sees no key has out 0, lse
// -inf and gives no gradient. Sequences may be empty.
//
// Gradients: with p = exp(s - lse) and delta[i] = grad_out[i] . out[i] - grad_lse[i],
//   ds = p * (grad_out v^T - delta)   dq = scale ds k   dk = scale ds^T q   dv = p^T grad_out
// so the gradient of lse costs one subtraction a row.
//
// Rows of D elements are contiguous; tokens and heads may have any strides. The caller has checked
// shapes and cu_seqlens. Accumulation: fp32 (double in the reference). Results depend on the
// sequence alone, never on the batch or the number of threads.
//
// With a block mask a query sees only keys of the blocks that its query block lists; all blocks
// listed is bit for bit the result without a mask. kernels/block_sparse is the face of that.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/dtype.h"
#include "kernels/common/block_mask.h"

namespace longspur::kernels::attention {

inline constexpr int64_t kMaxVarlenDim = 256;  // of VarlenForward and VarlenBackward

struct VarlenShape {
  const int32_t* cu_seqlens_q = nullptr;  // [B + 1], from 0 to Tq
  const int32_t* cu_seqlens_k = nullptr;  // [B + 1], from 0 to Tk
  int64_t batch = 0;                      // B
  int64_t heads = 0, kv_heads = 0;        // H, a multiple of G
  int64_t head_dim = 0;                   // D
  bool causal = true;
  double scale = 1.0;
  DType dtype = DType::kF32;  // of every operand but lse: F32, BF16, F16, F64
};

// [T, heads, D]; strides in elements, negative ones included.
struct ConstRows {
  const void* data = nullptr;
  int64_t token_stride = 0, head_stride = 0;
};
struct Rows {
  void* data = nullptr;
  int64_t token_stride = 0, head_stride = 0;
};

// lse and grad_lse: [H, Tq], heads at a stride, fp32; double when dtype is F64.
struct VarlenForwardArgs {
  VarlenShape shape;
  ConstRows q, k, v;
  Rows out;
  void* lse = nullptr;
  int64_t lse_stride = 0;
};

struct VarlenForwardTile;  // varlen_tile.h

struct VarlenBackwardArgs {
  VarlenShape shape;
  ConstRows q, k, v, out, grad_out;
  const void* lse = nullptr;
  int64_t lse_stride = 0;
  const void* grad_lse = nullptr;  // null: zero
  int64_t grad_lse_stride = 0;
  Rows dq, dk, dv;  // every element is written
};

// A computation cut into items that do not depend on each other within a phase. The caller hands
// them to its threads in any order, a phase after the other:
//
//   const VarlenForward forward(args);
//   team.dynamic_for(forward.items(), 1, [&](int64_t item, int64_t) { forward.run(item, scratch);
//   });
//
// Scratch is a thread's own, 64-byte aligned; 16-bit and fp32 operands, D up to kMaxVarlenDim.
class VarlenForward {
 public:
  explicit VarlenForward(const VarlenForwardArgs& args, const BlockMask& mask = {});
  int64_t items() const { return item_begins_.back(); }
  int64_t scratch_bytes() const;
  void run(int64_t item, std::byte* scratch) const;

 private:
  VarlenForwardTile tile_of(int64_t item) const;

  VarlenForwardArgs args_;
  BlockMask mask_;                        // words null: none
  int64_t heads_a_tile_, tokens_a_tile_;  // of one KV head's group
  std::vector<int64_t> item_begins_;      // [B + 1]
  std::vector<int32_t> order_;            // with a mask: items, the longest first
};

// Phases: row sums; dk, dv and slices of dq; the sum of the slices.
class VarlenBackward {
 public:
  static constexpr int kPhases = 3;
  explicit VarlenBackward(const VarlenBackwardArgs& args, const BlockMask& mask = {});
  int64_t items(int phase) const;
  int64_t scratch_bytes() const;
  int64_t workspace_bytes() const;  // shared by all threads and phases, 64-byte aligned
  void run(int phase, int64_t item, std::byte* scratch, std::byte* workspace) const;

 private:
  int64_t queries(int64_t b) const;
  int64_t keys(int64_t b) const;
  int64_t slices(int64_t b) const;
  float* partial_dq(int64_t b, std::byte* workspace) const;
  void run_delta(int64_t item, float* row, float* delta) const;
  void run_main(int64_t item, std::byte* scratch, std::byte* workspace) const;
  void run_reduce(int64_t item, float* row, std::byte* workspace) const;

  VarlenBackwardArgs args_;
  BlockMask mask_;                        // words null: none
  std::vector<int64_t> row_items_;        // [B + 1]: pieces of query rows, of all heads
  std::vector<int64_t> main_items_;       // [B + 1]
  std::vector<int64_t> partial_offsets_;  // [B + 1], floats
};

// Reference: plain loops in double over any dtype and head size; one thread. The backward works
// the probabilities out anew and reads neither out nor lse.
void varlen_forward_ref(const VarlenForwardArgs& args, const BlockMask& mask = {});
void varlen_backward_ref(const VarlenBackwardArgs& args, const BlockMask& mask = {});

}  // namespace longspur::kernels::attention
