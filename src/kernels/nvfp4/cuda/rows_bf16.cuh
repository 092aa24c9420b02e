// One block of 16 bf16 values at a time, without a slow instruction: how rows_bf16.cu chooses a
// scale and encodes. Words hold two neighbouring elements, the earlier one low.
//
// Scoring is in half precision. X = |x| * 2^k as fp16 is exact: k moves the block's maximum into
// [64, 128) and bf16 has 8 significant bits. For a candidate with step S (in X's unit),
//   K = 768, or 1024.. from X = 2 S, or 2048.. from X = 4 S: its unit in the last place is the
//   grid's q = K - (K - X / S),  d = X - q S,  error += d d
// K comes from one packed integer instruction on the bits of X: adding to them is multiplying.
// Encoding is exact, in fp32: t = x * (inv * 2^-14), s = M + t, r = s - M, with M as K but in fp32
// and off the ends of its binade, so that signs do no harm; r = q * 2^-14 is exact in E5M2, where
// its byte is the code shifted by one, the sign in bit 7, and a small negative t has become +0.
#pragma once

#include "kernels/nvfp4/cuda/exact.cuh"

namespace longspur::kernels::nvfp4::cuda {

inline constexpr int kWords = kBlock / 2;
inline constexpr uint32_t kMagnitudes = 0x7fff7fffu;

__device__ inline uint32_t both(uint32_t half) { return half * 0x00010001u; }
__device__ inline __half2 as_half2(uint32_t bits) {
  return *reinterpret_cast<const __half2*>(&bits);
}
__device__ inline uint32_t bits_of(__half2 x) { return *reinterpret_cast<const uint32_t*>(&x); }

// Keeps the compiler from knowing `x`.
__device__ inline void opaque(uint32_t& x) { asm("" : "+r"(x)); }

// bf16 bits of the block's largest magnitude.
__device__ inline uint32_t block_magnitude(const uint32_t (&w)[kWords]) {
  uint32_t most = w[0] & kMagnitudes;
#pragma unroll
  for (int i = 1; i < kWords; ++i) most = __vmaxu2(most, w[i] & kMagnitudes);
  return max(most & 0xffffu, most >> 16);
}

// Correctly rounded, the second from the first, for values whose exponent, and that of the result,
// is far from the ends.
__device__ inline float near_reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ inline float reciprocal(float x, float near) {
  return __fmaf_rn(near, __fmaf_rn(-x, near, 1.0f), near);
}
__device__ inline float reciprocal(float x) { return reciprocal(x, near_reciprocal(x)); }
// Two E4M3 codes, the first in the low byte, and their values.
__device__ inline uint32_t encode_scales(float low, float high) {
  uint16_t codes;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(codes) : "f"(high), "f"(low));
  return codes;
}
__device__ inline float2 decode_scales(uint32_t codes) {
  uint32_t halves;
  asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(halves) : "h"(uint16_t(codes)));
  return __half22float2(as_half2(halves));
}

// A block as it was read.
struct Words {
  const uint32_t (&w)[kWords];
  uint32_t magnitude;  // bf16 bits of the largest
  uint32_t mask;       // kMagnitudes, but not known when compiling: masked words are not kept
};

// The block in the unit of scoring.
struct Scored {
  uint32_t x[kWords];              // fp16
  float to_unit, minus_from_unit;  // 2^k, -2^-k
};
__device__ inline void to_scored(const Words& words, Scored& scored) {
  const uint32_t exponent = words.magnitude >> 7;  // of the maximum; 21 is that of 64 in fp16
  const uint32_t floor = both((exponent - 21) << 7);
  uint32_t minus_floor = 0u - floor * 8u;
  opaque(minus_floor);
#pragma unroll
  for (int i = 0; i < kWords; ++i)
    scored.x[i] = __vmaxu2(words.w[i] & words.mask, floor) * 8u + minus_floor;
  scored.to_unit = __uint_as_float((260 - exponent) << 23);
  scored.minus_from_unit = __uint_as_float((exponent + 250) << 23);
}

__device__ inline __half2 twice(float x) { return __floats2half2_rn(x, x); }

// A candidate scale as scoring uses it. Its step takes two halves: one alone, rounded by up to
// 2^-12, would decide near ties. near_inverse: 1 / step but for some units in the last place.
struct Candidate {
  __half2 step, step_low, minus_inverse;
  __device__ Candidate(float step_f, float near_inverse, const Scored& scored) {
    const float s = step_f * scored.to_unit;
    step = twice(s);
    step_low = twice(s - __low2float(step));
    minus_inverse = twice(near_inverse * scored.minus_from_unit);
  }
  // What turns the bits of X into those of K, for this candidate and its near neighbours.
  __device__ uint32_t to_grid() const { return 0x60006000u - bits_of(step); }
};

__device__ inline uint32_t grid_of(uint32_t x, uint32_t to_grid) {
  return __viaddmax_u16x2(x, to_grid, 0x62006200u);
}

// kClip: the step may be so small that X lies above 7 of them.
template <bool kClip>
__device__ inline __half2 differences(uint32_t x, uint32_t grid, const Candidate& c) {
  const __half2 k = as_half2(grid);
  __half2 minus_q = __hsub2(__hfma2(as_half2(x), c.minus_inverse, k), k);
  if constexpr (kClip) minus_q = __hmax2(minus_q, twice(-6.0f));
  return __hfma2(minus_q, c.step_low, __hfma2(minus_q, c.step, as_half2(x)));
}

__device__ inline float total(__half2 sum) { return __low2float(sum) + __high2float(sum); }

__device__ inline uint32_t to_e5m2(float e0, float e1, float e2, float e3) {
  uint32_t bytes;
  asm("{.reg .b16 lo, hi;\n\t"
      "cvt.rn.satfinite.e5m2x2.f32 lo, %2, %1;\n\t"
      "cvt.rn.satfinite.e5m2x2.f32 hi, %4, %3;\n\t"
      "mov.b32 %0, {lo, hi};}"
      : "=r"(bytes)
      : "f"(e0), "f"(e1), "f"(e2), "f"(e3));
  return bytes;
}

// Eight codes from their E5M2 bytes, even and odd elements. kClamp: 8 becomes 6.
template <bool kClamp>
__device__ inline uint32_t pack_codes(uint32_t even, uint32_t odd) {
  if constexpr (kClamp) {
    even -= (even & 0x10101010u) >> 3;
    odd -= (odd & 0x10101010u) >> 3;
  }
  return (even >> 1 & 0x07070707u) | (even >> 4 & 0x08080808u) | (odd << 3 & 0x70707070u) |
         (odd & 0x80808080u);
}

// Codes of eight elements.
template <bool kClamp>
__device__ inline uint32_t encode_words(const uint32_t* w, uint32_t to_magic, float inverse) {
  uint32_t filler = 0x4000u;
  opaque(filler);
  float r[8];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const uint32_t magic = __viaddmax_s16x2(w[i] & 0x7ffe7ffeu, to_magic, 0x43804380u);
    // What stands below the 16 bits of either magic keeps it off the ends of its binade, and even.
    const float m[2] = {__uint_as_float(magic * 65536u + filler), __uint_as_float(magic)};
    const float x[2] = {__uint_as_float(w[i] << 16), __uint_as_float(w[i] & 0xffff0000u)};
#pragma unroll
    for (int j = 0; j < 2; ++j)
      r[2 * i + j] = __fsub_rn(__fadd_rn(m[j], __fmul_rn(x[j], inverse)), m[j]);
  }
  return pack_codes<kClamp>(to_e5m2(r[0], r[2], r[4], r[6]), to_e5m2(r[1], r[3], r[5], r[7]));
}

template <bool kClamp>
__device__ inline uint2 encode_exactly(const uint32_t (&w)[kWords], float step, float inverse) {
  const uint32_t to_magic = both((0x4380u - (__float_as_uint(step) >> 16)) & 0xfffeu);
  const float scaled = inverse * 0x1p-14f;
  return {encode_words<kClamp>(w, to_magic, scaled), encode_words<kClamp>(w + 4, to_magic, scaled)};
}

}  // namespace longspur::kernels::nvfp4::cuda
