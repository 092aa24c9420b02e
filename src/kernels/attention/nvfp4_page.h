// Pages of keys and values in NVFP4. Private to this family.
//
// A page holds 64 tokens of one KV head, D a multiple of 16; each head vector is D / 16 blocks:
//   key codes    [D / 2][64]       byte (i, t): elements 2i (low nibble) and 2i + 1 of token t
//   value codes  [64 / 2][D]       byte (t, d): element d of tokens 2t (low nibble) and 2t + 1
//   key scales   [D / 16][64]      E4M3
//   value scales [64][D / 16]      E4M3
//   mean         codes [D / 2], scales [D / 16]: the mean of the page's keys
//   int8 n of the keys, of the values, of the mean: the multiplier is 2^n
// The keys' codes hold what is left of a key when the mean, as it reads back, is taken off: a
// channel that is large in every token would else set the scale of its block and leave its
// neighbours few steps. Queries and keys are rotated first (rotate_heads), which leaves scores as
// they are and spreads what sticks out in single channels.
// One byte of codes is one 32-bit word of the bf16 page, and with a multiplier that is a power of
// two every decoded number is exact in bf16; a key is rounded once more, when the mean is added.
// Decoding is a lookup, a product and a shift.
//
// A query reads its own block and block 0 (attention sinks) in bf16 and every other one in NVFP4,
// however a prompt is cut into calls. Block 0 and the newest block, while that is not full, lie in
// four quarters (half of the keys or of the values each) of a bf16 page: the sinks' first quarter
// in block 0's own page, the others in kSideBlocks further pages a sequence. A block is quantised
// when its last token arrives; of a block that becomes full in a call, or that a call's end only
// begins, the call's own rows give the tokens that the quarters lack.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "kernels/attention/tile.h"

namespace longspur::kernels::attention {

inline constexpr int kQuarters = 4;
inline constexpr int kSinkPages = 3;
static_assert(kSideBlocks == kSinkPages + kQuarters);

inline constexpr float kE2m1[16] = {0.0f, 0.5f,  1.0f,  1.5f,  2.0f,  3.0f,  4.0f,  6.0f,
                                    0.0f, -0.5f, -1.0f, -1.5f, -2.0f, -3.0f, -4.0f, -6.0f};

int64_t nvfp4_page_bytes(int64_t head_dim);

struct Nvfp4Page {
  const std::byte* at;
  int64_t d;
  const uint8_t* key_codes() const { return reinterpret_cast<const uint8_t*>(at); }
  const uint8_t* value_codes() const { return key_codes() + 32 * d; }
  const uint8_t* key_scales() const { return value_codes() + 32 * d; }
  const uint8_t* value_scales() const { return key_scales() + 4 * d; }
  const uint8_t* mean_codes() const { return value_scales() + 4 * d; }
  const uint8_t* mean_scales() const { return mean_codes() + d / 2; }
  const int8_t* exponents() const {
    return reinterpret_cast<const int8_t*>(mean_scales() + d / 16);
  }
};

// The quarters of a bf16 page: first and second half of the keys, then of the values.
using Bf16Quarters = std::array<std::byte*, kQuarters>;
// Of block 0, whose page is `first`, and of the newest block. `side`: the kSideBlocks page ids of a
// sequence's KV head.
Bf16Quarters sink_quarters(std::byte* pool, int64_t page_bytes, int32_t first, const int32_t* side);
Bf16Quarters newest_quarters(std::byte* pool, int64_t page_bytes, const int32_t* side);

// Tokens appended from `start` to `kv_len` both end a block that the newest quarters hold the
// beginning of and begin another one: its rows are stored when attention has read the former.
bool stored_late(int64_t start, int64_t kv_len);

// The tile's view of sequence b's pages and of the call's rows of qkv, at stride ld.
void set_nvfp4(Tile& tile,
               const PagedKv& kv,
               const BatchShape& shape,
               const float* rows,
               int64_t ld,
               int64_t heads,
               int64_t b,
               int64_t kv_head);

// x H / sqrt(n) in place for each n of `count` floats, H Sylvester's Hadamard matrix, n the largest
// power of two that divides d; its own inverse. count: a multiple of d.
void rotate_heads(float* x, int64_t count, int64_t d);

// keys, values: [64, D] bf16
void quantize_page(const uint16_t* keys, const uint16_t* values, int64_t d, std::byte* page);

// Appends the unit's rows to KV head `head`: to the bf16 quarters, or quantised where they make the
// block full.
void append_nvfp4(const AppendUnit& unit, int64_t head);
// `tokens` rows from `slot` on into the quarters of a block.
void store_rows(
    const Bf16Quarters& page, int64_t slot, int64_t tokens, int64_t d, const KvRows& rows);

}  // namespace longspur::kernels::attention
