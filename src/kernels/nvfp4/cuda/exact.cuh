// The formulas of api.h on the device, one block of 16 at a time in fp32. Every operation that
// could be contracted is an intrinsic that rounds on its own, so results equal those of ref.cpp.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cfloat>
#include <cstdint>

#include "kernels/nvfp4/api.h"
#include "kernels/nvfp4/codec.h"
#include "kernels/nvfp4/cuda/quantize.h"

namespace longspur::kernels::nvfp4::cuda {

// What kernels need of a recipe.
struct Rules {
  Rule rule;
  Metric metric;
  Rounding rounding;
  uint64_t seed;
  bool hadamard, tile_2d;
  float target, top;  // scale_target, scale_top
};

inline Rules rules_of(const Recipe& recipe) {
  return {recipe.rule,     recipe.metric,  recipe.rounding,      recipe.seed,
          recipe.hadamard, recipe.tile_2d, scale_target(recipe), scale_top(recipe)};
}

__device__ inline float widen(float x) { return x; }
__device__ inline float widen(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ inline float widen(__half x) { return __half2float(x); }

__device__ inline bool is_finite(float x) {
  return (__float_as_uint(x) & 0x7fffffffu) < 0x7f800000u;
}

// Magnitudes are compared and reduced as integers, where a NaN is above all.
inline constexpr uint32_t kInfinityBits = 0x7f800000u;
__device__ inline uint32_t magnitude_bits(const float (&x)[kBlock]) {
  uint32_t most = 0;
#pragma unroll
  for (int i = 0; i < kBlock; ++i) most = max(most, __float_as_uint(x[i]) & 0x7fffffffu);
  return most;
}
// amax as max_magnitude gives it: NaN when anything is not finite.
__device__ inline uint32_t amax_bits(uint32_t magnitude) {
  return magnitude < kInfinityBits ? magnitude : 0x7fc00000u;
}

__device__ inline float multiplier_of(float amax, float top) {
  return is_finite(amax) ? __fdiv_rn(amax, top) : __uint_as_float(0x7fc00000u);
}

// As hadamard16 of hadamard.cpp.
__device__ inline void rotate(float (&x)[kBlock]) {
  constexpr uint32_t kNegative = 0xd7e8;
#pragma unroll
  for (int k = 0; k < kBlock; ++k)
    if (kNegative >> k & 1) x[k] = -x[k];
#pragma unroll
  for (int half = 1; half < kBlock; half *= 2) {
#pragma unroll
    for (int k = 0; k < kBlock; ++k) {
      if (k & half) continue;
      const float a = x[k], b = x[k + half];
      x[k] = __fadd_rn(a, b);
      x[k + half] = __fsub_rn(a, b);
    }
  }
#pragma unroll
  for (int k = 0; k < kBlock; ++k)
    x[k] = __bfloat162float(__float2bfloat16_rn(__fmul_rn(x[k], 0.25f)));
}

// What one amax fixes. usual: products of it with codes and scales are far from the ends of fp32,
// so that quotient() is exact.
struct Encoding {
  float amax, top, inverse_top, enc, dec;
  bool usual;
};

__device__ inline float encode_factor(float top, float amax) {
  return amax == 0 ? 1.0f : fminf(__fdiv_rn(top, amax), FLT_MAX);
}

__device__ inline bool usual_amax(float amax) { return amax > 0x1p-60f && amax < 0x1p60f; }

__device__ inline Encoding encoding_of(float amax, const Rules& rules) {
  return {amax,
          rules.top,
          __frcp_rn(rules.top),
          encode_factor(rules.target, amax),
          __fdiv_rn(1.0f, encode_factor(rules.top, amax)),
          usual_amax(amax)};
}

// a / b correctly rounded, from 1 / b correctly rounded, where neither the quotient nor a's last
// place is near the smallest numbers (Markstein).
__device__ inline float quotient(float a, float b, float inverse_of_b) {
  const float q = __fmul_rn(a, inverse_of_b);
  return __fmaf_rn(__fmaf_rn(-q, b, a), inverse_of_b, q);
}

__device__ inline float inverse(const Encoding& e, uint32_t scale) {
  const float step = __fmul_rn(e.dec, e4m3_decode(scale));
  return step == 0 ? 0.0f : fminf(__fdiv_rn(1.0f, step), FLT_MAX);
}

__device__ inline int candidate_count(Rule rule) {
  return rule == Rule::kFourOverSix ? 2
         : rule == Rule::kSweep     ? 5
         : rule == Rule::kFullSweep ? 11
                                    : 1;
}

// b of api.h for a block with largest magnitude bmax.
__device__ inline float scale_aim(Rule rule, float bmax, float enc) {
  return __fmul_rn(rule == Rule::kStatic4 ? __fmul_rn(bmax, 0.25f) : __fdiv_rn(bmax, 6.0f), enc);
}

// The i-th scale code tried.
__device__ inline uint32_t candidate(Rule rule, int i, float b) {
  if (rule == Rule::kFourOverSix && i == 1) return e4m3_encode(__fmul_rn(b, 1.5f));
  const int plain = e4m3_encode(b);
  if (rule != Rule::kSweep && rule != Rule::kFullSweep) return uint32_t(plain);
  int offset = i;  // full: 0, -3, -2, -1, 1, 2, ..
  if (rule == Rule::kSweep)
    offset = i == 1 ? -1 : i == 2 ? 1 : i > 2 ? i + 1 : 0;  // 0, -1, 1, 4, 5
  else if (i > 0)
    offset = i < 4 ? i - 4 : i - 3;
  return uint32_t(min(max(plain + offset, 0), int(kE4m3MaxCode)));
}

// The E2M1 value nearest to x, as e2m1_encode rounds: adding 1.5 * 2^22 steps of the grid and
// taking them away again.
__device__ inline float e2m1_round(float x) {
  const float binade =
      fmaxf(__uint_as_float(__float_as_uint(x) & kInfinityBits), 1.0f);  // at least 1: step 0.5
  const float magic = __fmul_rn(binade, 0x1.8p22f);
  const float q = __fsub_rn(__fadd_rn(x, magic), magic);
  return fminf(fmaxf(q, -kE2m1Max), kE2m1Max);
}

// error[i]: what element i adds to the error of the block.
template <bool kUsual>
__device__ inline void element_errors(Metric metric,
                                      const Encoding& e,
                                      uint32_t scale,
                                      const float (&x)[kBlock],
                                      const float* importance,  // [16] or null
                                      float (&error)[kBlock]) {
  const float inv = inverse(e, scale);
  const float s = e4m3_decode(scale);
#pragma unroll
  for (int i = 0; i < kBlock; ++i) {
    const float q = e2m1_round(fminf(fmaxf(__fmul_rn(x[i], inv), -8.0f), 8.0f));
    const float product = __fmul_rn(__fmul_rn(q, s), e.amax);
    const float read = kUsual ? quotient(product, e.top, e.inverse_top) : __fdiv_rn(product, e.top);
    const float difference = __fsub_rn(read, x[i]);
    const float weight = importance != nullptr ? importance[i] : 1.0f;
    error[i] = metric == Metric::kMse ? __fmul_rn(__fmul_rn(difference, difference), weight)
                                      : __fmul_rn(fabsf(difference), weight);
  }
}

__device__ inline float accumulate(Metric metric, float sum, const float (&error)[kBlock]) {
#pragma unroll
  for (int i = 0; i < kBlock; ++i)
    sum = metric == Metric::kAbsMax ? fmaxf(sum, error[i]) : __fadd_rn(sum, error[i]);
  return sum;
}

// The scale code of one block, or (tiled) of the 16 blocks of the 16 neighbouring lanes, in order;
// then all lanes of the warp must be here.
template <bool kTiled>
__device__ inline uint32_t choose_scale(const Rules& rules,
                                        const Encoding& e,
                                        const float (&x)[kBlock],
                                        const float* importance) {
  uint32_t magnitude = magnitude_bits(x);
  if constexpr (kTiled) {
#pragma unroll
    for (int offset = 8; offset > 0; offset /= 2)
      magnitude = max(magnitude, __shfl_xor_sync(~0u, magnitude, offset, 16));
  }
  const bool usable = magnitude < kInfinityBits && is_finite(e.amax);
  if (!kTiled && !usable) return kE4m3Nan;
  const int count = candidate_count(rules.rule);
  const float b = scale_aim(rules.rule, __uint_as_float(magnitude), e.enc);
  uint32_t best = candidate(rules.rule, 0, b);
  float best_error = 0;
  for (int i = 0; i < count && count > 1; ++i) {
    const uint32_t scale = candidate(rules.rule, i, b);
    float error[kBlock], sum = 0;
    if (e.usual)
      element_errors<true>(rules.metric, e, scale, x, importance, error);
    else
      element_errors<false>(rules.metric, e, scale, x, importance, error);
    if constexpr (kTiled) {
      for (int lane = 0; lane < 16; ++lane) {
        if (int(threadIdx.x % 16) == lane) sum = accumulate(rules.metric, sum, error);
        sum = __shfl_sync(~0u, sum, lane, 16);
      }
    } else {
      sum = accumulate(rules.metric, sum, error);
    }
    if (i == 0 || sum < best_error) {
      best = scale;
      best_error = sum;
    }
  }
  return usable ? best : uint32_t(kE4m3Nan);
}

// Philox4x32-10, as base/rng.h.
__device__ inline uint4 philox(uint64_t seed, uint64_t counter) {
  uint4 c = {uint32_t(counter), uint32_t(counter >> 32), 0, 0};
  uint32_t k0 = uint32_t(seed), k1 = uint32_t(seed >> 32);
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    const uint32_t h0 = __umulhi(0xD2511F53u, c.x), l0 = 0xD2511F53u * c.x;
    const uint32_t h1 = __umulhi(0xCD9E8D57u, c.z), l1 = 0xCD9E8D57u * c.z;
    c = {h1 ^ c.y ^ k0, l1, h0 ^ c.w ^ k1, l0};
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return c;
}

// To the upper neighbour with the share of the way there as probability.
__device__ inline uint32_t encode_stochastic(float x, uint32_t random) {
  const float a = fminf(fabsf(x), kE2m1Max);
  // The lower neighbour: truncated, and the steps above it.
  const uint32_t low = a < 2 ? uint32_t(a * 2) : a < 4 ? uint32_t(a) + 2 : 6;
  const float inverse_step = low < 4 ? 2.0f : low < 6 ? 1.0f : 0.5f;
  const float share = __fmul_rn(__fsub_rn(a, e2m1_decode(low)), inverse_step);
  const float u = __fmul_rn(float(random >> 8), 0x1p-24f);
  const uint32_t code = u < share ? low + 1 : low;
  return code == 0 ? 0 : code | (signbit(x) ? 8u : 0u);
}

// The 16 codes of a block, in order from the lowest nibble. counter: of its first element.
__device__ inline uint2 encode_block(const Rules& rules,
                                     const Encoding& e,
                                     const float (&x)[kBlock],
                                     uint32_t scale,
                                     uint64_t counter) {
  const float inv = scale == kE4m3Nan ? 0.0f : inverse(e, scale);
  if (inv == 0) return {0, 0};
  uint32_t word[2] = {0, 0};
#pragma unroll
  for (int i = 0; i < kBlock; i += 4) {
    uint32_t code[4];
    if (rules.rounding == Rounding::kNearest) {
#pragma unroll
      for (int j = 0; j < 4; ++j) code[j] = e2m1_encode(__fmul_rn(x[i + j], inv));
    } else {
      const uint4 random = philox(rules.seed, (counter + uint64_t(i)) / 4);
      code[0] = encode_stochastic(__fmul_rn(x[i], inv), random.x);
      code[1] = encode_stochastic(__fmul_rn(x[i + 1], inv), random.y);
      code[2] = encode_stochastic(__fmul_rn(x[i + 2], inv), random.z);
      code[3] = encode_stochastic(__fmul_rn(x[i + 3], inv), random.w);
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) word[i / 8] |= code[j] << (i % 8 + j) * 4;
  }
  return {word[0], word[1]};
}

__device__ inline void store_block(const Quantized& out,
                                   int64_t row,
                                   int64_t block,
                                   int64_t columns,
                                   uint2 codes,
                                   uint32_t scale) {
  *reinterpret_cast<uint2*>(out.codes + (row * columns + block) * (kBlock / 2)) = codes;
  const int64_t at =
      out.swizzled ? swizzled_scale_offset(row, block, columns) : row * columns + block;
  out.scales[at] = uint8_t(scale);
}

}  // namespace longspur::kernels::nvfp4::cuda
