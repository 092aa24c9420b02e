// The packed order of W, and how its words become operands of the tensor cores.
//
// A tile is 16 rows by 128 columns, eight k-steps of m16n8k16 (or of a warp's share of
// m64nNk16, the same registers): [N / 128][K / 128][8 tiles][1,152 bytes], of which
//   codes   [2][32 lanes][4 words]: the word of k-step j has the eight elements that lane (g, t) =
//           (lane / 4, lane % 4) holds of the A operand: register p = 0 .. 3 is row g + 8 (p % 2),
//           columns 16 j + 2 t + 8 (p / 2) and the one after it;
//   scales  [8 g][4 words]: word q has those of rows g and g + 8 for the k-steps 2 q and 2 q + 1.
// The first elements of the pairs are in the low half of a word, the second ones in the high half;
// in each half the sign and the code of register p stand at
//   p = 0: 15, 8..6   p = 1: 12, 5..3   p = 2: 13, 11..9   p = 3: 14, 2..0
// so that a shift and a mask or two make a pair of bf16 (or fp16) of value q * 2^-126 (2^-14).
// A scale is an E5M3 byte with bias 15, every E4M3 scale normalised: as bf16 bits it gives s *
// 2^112 by one shift, mask and OR, as fp16 bits s itself. A zero scale has byte 0 and zero codes;
// NaN has byte 0xff: NaN. The operand is then q * s * 2^-14 either way, exact.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "kernels/nvfp4/packed_size.h"

namespace longspur::kernels::nvfp4::cuda {

inline constexpr int kTileRows = 16;
inline constexpr int kChunk = kPackedColumns;   // columns of a tile
inline constexpr int kSteps = kChunk / 16;      // k-steps of a tile
inline constexpr int kGroupRows = kPackedRows;  // rows whose tiles stand together
inline constexpr int kGroupTiles = kGroupRows / kTileRows;
inline constexpr int kCodeBytes = kTileRows * kChunk / 2;
inline constexpr int kScaleBytes = kTileRows * kChunk / 16;
inline constexpr int kTileBytes = kCodeBytes + kScaleBytes;
inline constexpr int kGroupBytes = kPackedGroupBytes;  // of one chunk
static_assert(kGroupBytes == kGroupTiles * kTileBytes);
inline constexpr float kOperandUnit = 0x1p14f;  // undoes the operand's 2^-14

struct TileCodes {
  uint4 words[2];  // k-steps 0..3, 4..7
};

// How the packed words become pairs of one type.
template <class Element>
struct Decoder;

template <>
struct Decoder<__nv_bfloat16> {
  using Pair = __nv_bfloat162;
  static constexpr uint32_t kSign = 0x80008000u, kCode = 0x01c001c0u, kBoth = kSign | kCode;
  __device__ static void codes(uint32_t w, uint32_t (&pairs)[4]) {
    pairs[0] = w & kBoth;
    pairs[1] = (w << 3) & kBoth;
    pairs[2] = ((w << 2) & kSign) | ((w >> 3) & kCode);
    pairs[3] = ((w << 1) & kSign) | ((w << 6) & kCode);
  }
  // Scales of rows g and g + 8 for an even and an odd k-step.
  __device__ static uint32_t even(uint32_t u) { return ((u << 4) & 0x0ff00ff0u) | 0x70007000u; }
  __device__ static uint32_t odd(uint32_t u) { return ((u >> 4) & 0x0ff00ff0u) | 0x70007000u; }
  __device__ static Pair low(Pair s) { return __low2bfloat162(s); }
  __device__ static Pair high(Pair s) { return __high2bfloat162(s); }
};

template <>
struct Decoder<__half> {
  using Pair = __half2;
  static constexpr uint32_t kSign = 0x80008000u, kCode = 0x0e000e00u;
  __device__ static void codes(uint32_t w, uint32_t (&pairs)[4]) {
    pairs[0] = (w & kSign) | ((w << 3) & kCode);
    pairs[1] = ((w << 3) & kSign) | ((w << 6) & kCode);
    pairs[2] = ((w << 2) & kSign) | (w & kCode);
    pairs[3] = ((w << 1) & kSign) | ((w << 9) & kCode);
  }
  __device__ static uint32_t even(uint32_t u) { return (u << 7) & 0x7f807f80u; }
  __device__ static uint32_t odd(uint32_t u) { return (u >> 1) & 0x7f807f80u; }
  __device__ static Pair low(Pair s) { return __low2half2(s); }
  __device__ static Pair high(Pair s) { return __high2half2(s); }
};

// The A operand of one k-step. scales: even(u) or odd(u) of the step's word.
template <class Element>
__device__ inline void decode_step(uint32_t word, uint32_t scales, uint32_t (&a)[4]) {
  using D = Decoder<Element>;
  using Pair = typename D::Pair;
  D::codes(word, a);
  const Pair both = reinterpret_cast<const Pair&>(scales);
  const Pair low = D::low(both), high = D::high(both);
#pragma unroll
  for (int p = 0; p < 4; ++p) {
    const Pair product = __hmul2(reinterpret_cast<const Pair&>(a[p]), p % 2 == 0 ? low : high);
    a[p] = reinterpret_cast<const uint32_t&>(product);
  }
}

}  // namespace longspur::kernels::nvfp4::cuda
