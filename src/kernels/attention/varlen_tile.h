// Pieces of the attention over packed sequences that one thread computes at a time, and the table
// of functions that compute them, one table an instruction set. Private to this family.
#pragma once

#include <cstdint>

#include "kernels/attention/varlen.h"

namespace longspur::kernels::attention {

inline constexpr int64_t kBlockKeys = 64;     // keys of a block
inline constexpr int64_t kGradientRows = 64;  // query rows of one step of the backward

// Consecutive queries of one sequence times query heads of one KV head. Rows are (token, head)
// pairs, so that the heads share every packed block of keys and values. With a mask all rows have
// the same list of key blocks.
struct VarlenForwardTile {
  const VarlenForwardArgs* args;
  int64_t q_begin, tokens;    // rows of q
  int64_t k_begin, keys;      // rows of k: the whole sequence
  int64_t first_head, heads;  // query heads
  int64_t kv_head;
  int64_t first_visible;   // keys that the first query sees if causal, one more each later one; may
                           // be negative
  const uint32_t* listed;  // row of a mask; null: every block
  int64_t keys_a_bit;      // of it
};

// Scratch of one thread; words are fp32, or pairs of bf16.
struct VarlenForwardScratch {
  void* q;       // [rows, words(D)]
  float* o;      // [rows, padded_dim]
  float* state;  // [rows, 2]
  void* keys;    // [words(D), kBlockKeys]
  void* values;  // [words(kBlockKeys), padded_dim]
  float* s;      // [kMaxRows, kBlockKeys]
  void* p;       // [kMaxRows, words(kBlockKeys)]
  float* row;    // [2, padded_dim]
};

// Every block_step-th block of keys of one sequence and KV head, with all queries that see them.
struct VarlenBackwardTile {
  const VarlenBackwardArgs* args;
  int64_t q_begin, tokens;
  int64_t k_begin, keys;
  int64_t first_head, heads;
  int64_t kv_head;
  int64_t first_visible;
  int64_t first_block, block_step;
  const BlockMask* mask;  // null: none
  int64_t sequence;       // of the mask
  const float* delta;     // [H, Tq]
  float* dq;              // [heads, tokens, padded_dim]: written
};

struct VarlenBackwardScratch {
  float *q, *grad_out;       // [kGradientRows, padded_dim]
  float *keys_t, *values_t;  // [D, kBlockKeys]
  float* keys;               // [kBlockKeys, padded_dim]
  float *dk, *dv;            // [kBlockKeys, padded_dim]
  float *p, *ds;             // [kGradientRows, kBlockKeys]
  float* row;                // [2, padded_dim]
};

// Query rows of one head: delta = grad_out . out - grad_lse, [H, Tq].
struct VarlenDeltaTile {
  const VarlenBackwardArgs* args;
  int64_t head, q_begin, tokens;
  float* delta;
  float* row;  // scratch, [2, padded_dim]
};

// Query rows of one head: the sum of `slices` partial dq, times scale.
struct VarlenReduceTile {
  const VarlenBackwardArgs* args;
  int64_t head, q_begin, tokens;
  const float* partial;  // [tokens, padded_dim], slices at slice_stride
  int64_t slices, slice_stride;
  float* row;  // scratch, [2, padded_dim]
};

struct VarlenTable {
  // For bf16 operands: words are pairs of them where the processor multiplies pairs, else fp32.
  void (*forward_bf16)(const VarlenForwardTile& tile, const VarlenForwardScratch& scratch);
  void (*forward)(const VarlenForwardTile& tile, const VarlenForwardScratch& scratch);
  void (*delta)(const VarlenDeltaTile& tile);
  void (*backward)(const VarlenBackwardTile& tile, const VarlenBackwardScratch& scratch);
  void (*reduce)(const VarlenReduceTile& tile);
};

}  // namespace longspur::kernels::attention
