// Scores of blocks of keys without values: what the softmax of a row of queries weighs on each
// segment of keys. The estimators of kernels/xattn are made of these; keys lie as in pages.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/attention/varlen_tile.h"

namespace longspur::kernels::attention {

struct Tile;

// Blocks of 64 columns, [words, 64] each: floats, or pairs of bf16.
struct KeyBlocks {
  const std::byte* base = nullptr;  // block j at base + bytes * (pages ? pages[j] : j)
  int64_t bytes = 0;
  const int32_t* pages = nullptr;
  const Tile* nvfp4 = nullptr;  // its pages instead, each opened into `opened`, a bf16 page
  std::byte* opened = nullptr;
};

// Row r sees columns [0, visible[r]). With x = factor * row . column + bias[r] * |column|^2, in
// base 2, segment g of `segment` columns gets
//   top[r, g] = the largest x of the row up to segment g's block, or less by what exp2 loses
//   nothing sum[r, g] = sum of exp2(x - top[r, g]) over the segment's visible columns
// for all segments of blocks [0, end_block). A NaN among a row's x makes its sums NaN from there.
struct ScoreTile {
  const void* rows = nullptr;  // [count, words]
  int64_t count = 0;           // at most kMaxRows
  int64_t words = 0;
  const int64_t* visible = nullptr;  // [count]
  const float* bias = nullptr;       // [count] or null
  float factor = 1.0f;
  KeyBlocks keys;
  int64_t end_block = 0;
  int64_t segment = kBlockKeys;  // columns; a power of two up to kBlockKeys
  float* top = nullptr;          // [count, stride]
  float* sum = nullptr;          // [count, stride]
  int64_t stride = 0;
  float* s = nullptr;  // scratch, [kMaxRows, kBlockKeys]
};

// The log-sum-exp of a row in parts: 2^top * sum.
struct RowMass {
  float top, sum;
};

struct ScoreTable {
  void (*pairs)(const ScoreTile& tile);
  void (*floats)(const ScoreTile& tile);
  // From one row of a tile to shares that add up to 1 over segments [0, n); both arrays are as long
  // as a multiple of 16 and may be changed behind n. All sums 0: NaN.
  RowMass (*shares)(float* top, float* sum, int64_t n, float* share);
  // Block j, valid until `opened` is used again.
  const std::byte* (*open)(const KeyBlocks& keys, int64_t j);
  // `count` rows of one head as fp32, rows at stride padded_dim(d).
  void (*load)(const ConstRows& rows,
               DType type,
               int64_t token,
               int64_t head,
               int64_t count,
               int64_t d,
               float* to);
};

}  // namespace longspur::kernels::attention
