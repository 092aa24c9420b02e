// The walk of quantised products over groups and token tiles, shared by the instruction sets: a
// tile of 16 tokens is cut into pieces of 16, 8, 4, 2 and 1, at most Isa::kMostTokens. The unit's
// Isa::block_tile<kind, tokens, codes>(p, weight, piece, row) computes 16 rows times a piece.
#pragma once

#include "kernels/qgemm/params.h"

namespace longspur::kernels::qgemm {
namespace {

// Where a piece of an activation tile lies.
struct Piece {
  const std::byte* scale;  // of its first token in the first block
  const std::byte* codes;  // the first array of codes
  const std::byte* peaks;  // kPeakCodes
  int64_t width;           // W of the tile
  int64_t block_bytes;
  int64_t token;  // first token, counted in the call
};

template <class Isa, WeightKind kKind, CodeKind kCodes>
inline void tile_pieces(const ProductParams& p,
                        const std::byte* weight,
                        const std::byte* tile,
                        int64_t width,
                        int64_t first,
                        int64_t row) {
  int64_t token = 0;
  const auto piece = [&] {
    constexpr int64_t kHeader = header_bytes(kKind, kCodes);
    return Piece{.scale = tile + token * 4,
                 .codes = tile + width * kHeader + token * kBlock,
                 .peaks = tile + width * (kHeader + kBlock) + token * peak_bytes(kKind),
                 .width = width,
                 .block_bytes = width * activation_block_bytes(kKind, kCodes),
                 .token = first + token};
  };
  const auto pieces_of = [&]<int kSize>() {
    if constexpr (kSize <= Isa::kMostTokens) {
      for (; token + kSize <= width; token += kSize)
        Isa::template block_tile<kKind, kSize, kCodes>(p, weight, piece(), row);
    }
  };
  pieces_of.template operator()<16>();
  pieces_of.template operator()<8>();
  pieces_of.template operator()<4>();
  pieces_of.template operator()<2>();
  pieces_of.template operator()<1>();
}

template <class Isa, WeightKind kKind, CodeKind kCodes>
void quant_tiles(const ProductParams& p,
                 int64_t group_begin,
                 int64_t group_end,
                 int64_t token_begin,
                 int64_t token_end) {
  const int64_t token_bytes = p.k / kBlock * activation_block_bytes(kKind, kCodes);
  for (int64_t group = group_begin; group < group_end; ++group) {
    const std::byte* weight = p.weight + group * p.group_bytes;
    for (int64_t token = token_begin; token < token_end; token += kTileTokens) {
      const int64_t width = p.t - token < kTileTokens ? p.t - token : kTileTokens;
      tile_pieces<Isa, kKind, kCodes>(p, weight, p.activations + token * token_bytes, width, token,
                                      group * kGroupRows);
    }
  }
}

template <class Isa, WeightKind kKind>
void quant_product(const ProductParams& p,
                   int64_t group_begin,
                   int64_t group_end,
                   int64_t token_begin,
                   int64_t token_end) {
  if (p.codes == kInt15Codes)
    return quant_tiles<Isa, kKind, kInt15Codes>(p, group_begin, group_end, token_begin, token_end);
  if constexpr (kKind == kNvfp4Kind) {
    if (p.codes == kNvfp4Codes)
      return quant_tiles<Isa, kKind, kNvfp4Codes>(p, group_begin, group_end, token_begin,
                                                  token_end);
  }
  quant_tiles<Isa, kKind, kPeakCodes>(p, group_begin, group_end, token_begin, token_end);
}

// Bytes of a block of 16 rows.
constexpr int64_t block_bytes(WeightKind kind) {
  return kind == kQ4_1Kind ? 320 : kind == kQ8_0Kind ? 544 : 288;
}

}  // namespace
}  // namespace longspur::kernels::qgemm
