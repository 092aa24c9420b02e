// Which blocks of keys a block of queries reads, one bit a pair: what selection writes and
// block-sparse attention reads, on every device.
//
// Query block i of a sequence is its query rows kQueryBlock * i .. (counted from the first row of
// the call), key block j its keys block_size * j ..; a last block may be short. A bit of a block
// that no row of the query block sees (beyond the sequence, or in the causal future) is ignored.
// Bits are as compact as a list needs (131,072 tokens, 32 heads: 4 MiB), have a fixed capacity,
// and are both the lists of a forward pass and, read by column, of a backward pass.
#pragma once

#include <bit>
#include <cstdint>

#include "base/shape.h"

namespace longspur::kernels {

inline constexpr int64_t kQueryBlock = 128;

struct BlockMask {
  // [B, heads, query_blocks, row_words]: key block j is bit j % 32 of word j / 32; 16-byte aligned
  const uint32_t* words = nullptr;
  int64_t block_size = 128;  // keys a block: 64 or 128
  int64_t heads = 0;         // H, G or 1; query head h of H reads row h / (H / heads)
  int64_t query_blocks = 0;  // of the longest sequence
  int64_t row_words = 0;     // row_words(key blocks of the longest sequence)

  static constexpr int64_t words_of(int64_t key_blocks) {
    return round_up(ceil_div(key_blocks, int64_t{32}), int64_t{4});
  }
  constexpr const uint32_t* row(int64_t b, int64_t mask_head, int64_t query_block) const {
    return words + ((b * heads + mask_head) * query_blocks + query_block) * row_words;
  }
};

constexpr bool has_block(const uint32_t* row, int64_t j) {
  return (row[j / 32] >> (j % 32) & 1u) != 0;
}

// Bits of blocks [0, end) that are set.
inline int64_t count_blocks(const uint32_t* row, int64_t end) {
  int64_t count = 0;
  for (int64_t word = 0; word < end / 32; ++word) count += std::popcount(row[word]);
  const uint32_t below = (uint32_t{1} << (end % 32)) - 1;
  return end % 32 == 0 ? count : count + std::popcount(row[end / 32] & below);
}

// Key blocks that the rows of query block i see: [0, end), of which [diagonal, end) are the ones
// that not every row sees in full. n queries, m keys.
struct VisibleBlocks {
  int64_t diagonal, end;
};
constexpr VisibleBlocks visible_blocks(
    int64_t i, int64_t n, int64_t m, int64_t block_size, bool causal) {
  const int64_t all = ceil_div(m, block_size);
  if (!causal) return {m / block_size, all};
  const int64_t first_row = i * kQueryBlock;
  const int64_t last_row = first_row + kQueryBlock < n ? first_row + kQueryBlock - 1 : n - 1;
  // keys that the first and the last row of the block see
  const int64_t first = m - n + first_row + 1, last = m - n + last_row + 1;
  return {first > 0 ? first / block_size : 0, last > 0 ? ceil_div(last, block_size) : 0};
}

}  // namespace longspur::kernels
