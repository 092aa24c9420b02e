// The arithmetic of selection, on plain integers, so that every machine keeps the same blocks:
// scores by their fp32 bits, sums in units of 2^-39 of the power of two below the row's largest
// score. For host and device code.
#pragma once

#include <cstdint>

#include "kernels/common/block_mask.h"
#include "kernels/xattn/api.h"

namespace longspur::kernels::xattn {

inline constexpr uint32_t kInfinityBits = 0x7f800000u;
inline constexpr uint32_t kOneBits = 0x3f800000u;

// Keys order scores: the bits of a score, -0 as 0. A key from kInfinityBits on is no score: NaN,
// infinite or negative.
constexpr uint32_t score_key(uint32_t bits) { return bits == 0x80000000u ? 0u : bits; }
constexpr bool is_score(uint32_t key) { return key < kInfinityBits; }

struct FloatParts {
  uint32_t mantissa;
  int32_t exponent;  // value = mantissa * 2^(exponent - 150)
};
constexpr FloatParts float_parts(uint32_t key) {
  const auto exponent = int32_t(key >> 23);
  const uint32_t fraction = key & 0x7fffffu;
  return exponent == 0 ? FloatParts{fraction, 1} : FloatParts{fraction | 0x800000u, exponent};
}

// The score in units of its row, cut to an integer: below 2^40, and exact from 2^-16 of the largest
// score on. max_key: the row's largest key.
constexpr uint64_t score_units(uint32_t key, uint32_t max_key) {
  const FloatParts score = float_parts(key);
  const int32_t shift = 16 - (float_parts(max_key).exponent - score.exponent);
  if (shift >= 0) return uint64_t(score.mantissa) << shift;
  return shift > -32 ? uint64_t(score.mantissa) >> -shift : 0;
}

// Thresholds: NaN keeps everything, below 0 is 0.
constexpr bool is_nan_bits(uint32_t bits) { return (bits & 0x7fffffffu) > kInfinityBits; }
constexpr uint32_t threshold_key(uint32_t bits) { return bits >= 0x80000000u ? 0u : bits; }

// The smallest integer not below threshold * total; threshold_key < kOneBits, total < 2^63.
constexpr uint64_t required_units(uint32_t threshold_key, uint64_t total) {
  const FloatParts t = float_parts(threshold_key);
  const int32_t shift = 150 - t.exponent;  // at least 24; threshold * total = product / 2^shift
  const uint64_t low = uint64_t(t.mantissa) * (total & 0xffffffffu);
  const uint64_t high = uint64_t(t.mantissa) * (total >> 32) + (low >> 32);  // below 2^56
  const uint64_t tail = low & 0xffffffffu;                                   // product % 2^32
  if (shift < 32) return (high << (32 - shift)) + ((tail + (uint64_t{1} << shift) - 1) >> shift);
  if (shift >= 32 + 64) return high != 0 || tail != 0 ? 1 : 0;
  const uint64_t mask = (uint64_t{1} << (shift - 32)) - 1;
  return (high >> (shift - 32)) + ((high & mask) != 0 || tail != 0 ? 1 : 0);
}

// Whether a score has at least `threshold` of the row's largest: products of two fp32 are exact in
// double.
constexpr bool at_least(float score, float threshold, float largest) {
  return double(score) >= double(threshold) * double(largest);
}

// Blocks kept whatever their score: [0, sink_end) and [local_begin, local_end).
struct ForcedBlocks {
  int64_t sink_end, local_begin, local_end;
};
constexpr bool is_forced(const ForcedBlocks& forced, int64_t j) {
  return j < forced.sink_end || (j >= forced.local_begin && j < forced.local_end);
}
constexpr ForcedBlocks forced_blocks(int64_t i,
                                     int64_t n,
                                     int64_t m,
                                     const SelectOptions& options) {
  const VisibleBlocks visible = visible_blocks(i, n, m, options.block_size, options.causal);
  const int64_t sink = options.sink_blocks < visible.end ? options.sink_blocks : visible.end;
  if (options.local_blocks <= 0 || visible.end == 0) return {sink, 0, 0};
  const int64_t further = options.local_blocks - 1;
  if (options.causal) {
    // A block that ends where a single row stands is seen in full, and still the row's own.
    const int64_t own = visible.diagonal < visible.end ? visible.diagonal : visible.end - 1;
    return {sink, own > further ? own - further : 0, visible.end};
  }
  const int64_t first = m - n + i * kQueryBlock;  // positions of the block's rows: [first, last]
  const int64_t last =
      first + (n - i * kQueryBlock < kQueryBlock ? n - i * kQueryBlock : kQueryBlock) - 1;
  if (last < 0) return {sink, 0, 0};
  const int64_t begin = (first > 0 ? first : 0) / options.block_size - further;
  const int64_t end = last / options.block_size + 1 + further;
  return {sink, begin > 0 ? begin : 0, end < visible.end ? end : visible.end};
}

}  // namespace longspur::kernels::xattn
