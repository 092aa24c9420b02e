// The walk of quantised products over groups and token tiles, shared by the instruction sets: a
// tile of 16 tokens is cut into pieces of 16, 8, 4, 2 and 1, at most Isa::kMostTokens. The unit's
// Isa::block_tile<kind, tokens, all 15 bits>(p, weight, piece, row) computes 16 rows times a piece.
#pragma once

#include "kernels/qgemm/params.h"

namespace longspur::kernels::qgemm {
namespace {

// Where a piece of an activation tile lies.
struct Piece {
  const std::byte* scale;  // of its first token in the first block
  const std::byte* codes;  // the first array of codes
  const std::byte* peaks;  // kInt8Peak
  int64_t width;           // W of the tile
  int64_t block_bytes;
  int64_t token;  // first token, counted in the call
};

template <class Isa, WeightKind kKind, bool kTwo>
inline void tile_pieces(const ProductParams& p,
                        const std::byte* weight,
                        const std::byte* tile,
                        int64_t width,
                        int64_t first,
                        int64_t row) {
  int64_t token = 0;
  const auto piece = [&] {
    return Piece{.scale = tile + token * 4,
                 .codes = tile + width * 8 + token * kBlock,
                 .peaks = tile + width * (8 + kBlock) + token * int64_t(sizeof(Peak)),
                 .width = width,
                 .block_bytes = width * activation_block_bytes(kTwo),
                 .token = first + token};
  };
  const auto pieces_of = [&]<int kSize>() {
    if constexpr (kSize <= Isa::kMostTokens) {
      for (; token + kSize <= width; token += kSize)
        Isa::template block_tile<kKind, kSize, kTwo>(p, weight, piece(), row);
    }
  };
  pieces_of.template operator()<16>();
  pieces_of.template operator()<8>();
  pieces_of.template operator()<4>();
  pieces_of.template operator()<2>();
  pieces_of.template operator()<1>();
}

template <class Isa, WeightKind kKind, bool kTwo>
void quant_tiles(const ProductParams& p,
                 int64_t group_begin,
                 int64_t group_end,
                 int64_t token_begin,
                 int64_t token_end) {
  const int64_t token_bytes = p.k / kBlock * activation_block_bytes(kTwo);
  for (int64_t group = group_begin; group < group_end; ++group) {
    const std::byte* weight = p.weight + group * p.group_bytes;
    for (int64_t token = token_begin; token < token_end; token += kTileTokens) {
      const int64_t width = p.t - token < kTileTokens ? p.t - token : kTileTokens;
      tile_pieces<Isa, kKind, kTwo>(p, weight, p.activations + token * token_bytes, width, token,
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
  if (p.int15) {
    quant_tiles<Isa, kKind, true>(p, group_begin, group_end, token_begin, token_end);
  } else {
    quant_tiles<Isa, kKind, false>(p, group_begin, group_end, token_begin, token_end);
  }
}

// Bytes of a block of 16 rows.
constexpr int64_t block_bytes(WeightKind kind) {
  return kind == kQ4_1Kind ? 320 : kind == kQ4_0Kind ? 288 : 544;
}

}  // namespace
}  // namespace longspur::kernels::qgemm
