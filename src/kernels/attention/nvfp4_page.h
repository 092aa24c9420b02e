// Pages of keys and values in NVFP4. Private to this family.
//
// A page holds 64 tokens of one KV head, D a multiple of 16; each head vector is D / 16 blocks:
//   key codes    [D / 2][64]       byte (i, t): elements 2i (low nibble) and 2i + 1 of token t
//   value codes  [64 / 2][D]       byte (t, d): element d of tokens 2t (low nibble) and 2t + 1
//   key scales   [D / 16][64]      E4M3
//   value scales [64][D / 16]      E4M3
//   int32 n of the keys, of the values: the multiplier is 2^n
// One byte of codes is one 32-bit word of the bf16 page, and with a multiplier that is a power of
// two every decoded value is exact in bf16: decoding is a lookup, a product and a shift.
//
// Block 0 of a sequence (attention sinks) and its newest block, while that is not full, stay in
// bf16: they lie in kSideBlocks further pages a sequence, kBf16Pages for each of the two, each
// page holding a quarter (half of the keys or of the values) of a bf16 page. A block is quantised
// when its last token arrives.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "kernels/attention/tile.h"

namespace longspur::kernels::attention {

inline constexpr int kBf16Pages = kSideBlocks / 2;

int64_t nvfp4_page_bytes(int64_t head_dim);

struct Nvfp4Page {
  const std::byte* at;
  int64_t d;
  const uint8_t* key_codes() const { return reinterpret_cast<const uint8_t*>(at); }
  const uint8_t* value_codes() const { return key_codes() + 32 * d; }
  const uint8_t* key_scales() const { return value_codes() + 32 * d; }
  const uint8_t* value_scales() const { return key_scales() + 4 * d; }
  const int32_t* exponents() const {
    return reinterpret_cast<const int32_t*>(value_scales() + 4 * d);
  }
};

// The quarters of a bf16 page: first and second half of the keys, then of the values.
using Bf16Quarters = std::array<std::byte*, kBf16Pages>;
// `side`: the kSideBlocks page ids of a sequence's KV head; the sinks' come first.
Bf16Quarters bf16_quarters(std::byte* pool, int64_t page_bytes, const int32_t* side, bool sinks);

// keys, values: [64, D] bf16
void quantize_page(const uint16_t* keys, const uint16_t* values, int64_t d, std::byte* page);

// Appends the unit's rows to KV head `head`: to the bf16 quarters, or quantised where they make the
// block full.
void append_nvfp4(const AppendUnit& unit, int64_t head);

}  // namespace longspur::kernels::attention
