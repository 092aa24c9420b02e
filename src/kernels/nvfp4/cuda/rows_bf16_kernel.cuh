// The kernel of rows_bf16.cu and rows_bf16_fused.cu: a thread block a row (or a part of one, where
// amax is known), a thread two blocks of 16, in registers from the one read to the store. Blocks
// with unusual numbers (a scale near or below the smallest normal one, an amax near the ends of
// fp32, NaN, infinity) are put aside and done by the exact formulas at the end.
#pragma once

#include "kernels/common/cuda/launch.cuh"
#include "kernels/nvfp4/cuda/kernels.cuh"
#include "kernels/nvfp4/cuda/rows_bf16.cuh"

namespace longspur::kernels::nvfp4::cuda {

inline constexpr int kPerThread = 2;
inline constexpr int kMaxThreads = 512;

// What a row's amax fixes. Unusual amax gives an enc that no block's b passes with.
struct RowScale {
  float enc, dec;
};
__device__ inline RowScale row_scale(float amax, float top) {
  if (!usual_amax(amax)) return {__uint_as_float(0x7fc00000u), 0.0f};
  const float enc = quotient(top, amax, reciprocal(amax));
  return {enc, reciprocal(enc)};
}

struct Choice {
  uint32_t scale;  // E4M3 code
  float step, inverse;
};

// Not for blocks of zeros, NaN and infinities, nor for scales that are subnormal or nearly so, nor
// for those that saturate, as happens to values above a given amax.
__device__ inline bool usual(float b) { return b >= 0.03125f && b < 464.0f; }

// Which scale a block of the largest magnitude (bf16 bits) gets, from b of api.h.
template <Rule kRule, Metric kMetric>
struct Chooser;

template <Metric kMetric>
struct Chooser<Rule::kStatic6, kMetric> {
  static constexpr bool kClamp = false;
  __device__ static void choose(const Words&, float b, float dec, Choice& choice) {
    choice.scale = encode_scales(b, b) & 0xffu;
    choice.step = __fmul_rn(dec, decode_scales(choice.scale).x);
    choice.inverse = reciprocal(choice.step);
  }
};

template <Metric kMetric>
struct Chooser<Rule::kFourOverSix, kMetric> {
  static constexpr bool kClamp = false;
  __device__ static void choose(const Words& words, float b, float dec, Choice& choice) {
    const uint32_t codes = encode_scales(b, __fmul_rn(b, 1.5f));
    const float2 s = decode_scales(codes);
    const float step6 = __fmul_rn(dec, s.x), step4 = __fmul_rn(dec, s.y);
    const float near6 = near_reciprocal(step6), near4 = near_reciprocal(step4);
    Scored scored;
    to_scored(words, scored);
    const Candidate c6(step6, near6, scored), c4(step4, near4, scored);
    const uint32_t grid6 = c6.to_grid(), grid4 = c4.to_grid();
    __half2 gain =
        twice(0.0f);  // the error of 4 less that of 6: near ties it stays small, and exact
#pragma unroll
    for (int i = 0; i < kWords; ++i) {
      const uint32_t x = scored.x[i];
      const __half2 d4 = differences<false>(x, grid_of(x, grid4), c4);
      const __half2 d6 = differences<false>(x, grid_of(x, grid6), c6);
      gain = kMetric == Metric::kMse ? __hfma2(__hneg2(d6), d6, __hfma2(d4, d4, gain))
                                     : __hsub2(__hadd2(gain, __habs2(d4)), __habs2(d6));
    }
    // Ties keep 6. They are exact where s4 = 1.5 s6 and both read back the same numbers, as in
    // blocks of few values; squares in halves show those as a little more or less than a tie.
    const bool alike = s.y == 1.5f * s.x;
    const float tie = kMetric != Metric::kMse ? -0x1p-8f : alike ? -0x1p-4f : -0x1p-20f;
    const bool four = total(gain) < tie;
    choice.scale = four ? codes >> 8 : codes & 0xffu;
    choice.step = four ? step4 : step6;
    choice.inverse = reciprocal(choice.step, four ? near4 : near6);
  }
};

template <>
struct Chooser<Rule::kSweep, Metric::kMse> {
  static constexpr bool kClamp = true;  // one code below the plain scale, the maximum is above 7
  __device__ static void choose(const Words& words, float b, float dec, Choice& choice) {
    const uint32_t plain = encode_scales(b, b) & 0xffu;
    // In the order of api.h: 0, -1, 1, 4, 5.
    const uint32_t most = kE4m3MaxCode;
    const uint32_t code[5] = {plain, plain - 1, min(plain + 1, most), min(plain + 4, most),
                              min(plain + 5, most)};
    const float2 s01 = decode_scales(code[0] | code[1] << 8);
    const float2 s23 = decode_scales(code[2] | code[3] << 8);
    const float s4 = decode_scales(code[4]).x;
    const float step[5] = {__fmul_rn(dec, s01.x), __fmul_rn(dec, s01.y), __fmul_rn(dec, s23.x),
                           __fmul_rn(dec, s23.y), __fmul_rn(dec, s4)};
    Scored scored;
    to_scored(words, scored);
    const Candidate c[5] = {{step[0], near_reciprocal(step[0]), scored},
                            {step[1], near_reciprocal(step[1]), scored},
                            {step[2], near_reciprocal(step[2]), scored},
                            {step[3], near_reciprocal(step[3]), scored},
                            {step[4], near_reciprocal(step[4]), scored}};
    // A grid serves steps up to 1/8 away: between 1.75 and 2.25 both grids round to 2.
    const uint32_t near = c[0].to_grid(), far = c[3].to_grid();
    __half2 e[5];
#pragma unroll
    for (int j = 0; j < 5; ++j) e[j] = twice(0.0f);
#pragma unroll
    for (int i = 0; i < kWords; ++i) {
      const uint32_t x = scored.x[i], grid_near = grid_of(x, near), grid_far = grid_of(x, far);
#pragma unroll
      for (int j = 0; j < 5; ++j) {
        const uint32_t grid = j < 3 ? grid_near : grid_far;
        const __half2 d =
            j == 1 ? differences<true>(x, grid, c[j]) : differences<false>(x, grid, c[j]);
        e[j] = __hfma2(d, d, e[j]);
      }
    }
    float best = total(e[0]);
    choice.scale = code[0];
    choice.step = step[0];
#pragma unroll
    for (int j = 1; j < 5; ++j) {
      const float error = total(e[j]);
      if (error < best) {
        best = error;
        choice.scale = code[j];
        choice.step = step[j];
      }
    }
    choice.inverse = reciprocal(choice.step);
  }
};

// For blocks put aside. Its own function, so that its registers are not counted in the others'
// path.
inline __device__ __noinline__ void exact_block(const RowParams& params,
                                                int64_t r,
                                                int64_t block,
                                                float amax,
                                                const uint4& low,
                                                const uint4& high) {
  const uint32_t w[kWords] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
  float x[kBlock];
#pragma unroll
  for (int i = 0; i < kBlock; ++i)
    x[i] = __uint_as_float(i % 2 == 0 ? w[i / 2] << 16 : w[i / 2] & 0xffff0000u);
  const Encoding e = encoding_of(amax, params.rules);
  const uint32_t scale = choose_scale<false>(params.rules, e, x, nullptr);
  store_block(params.out, r, block, params.columns, encode_block(params.rules, e, x, scale, 0),
              scale);
}

// The row's amax from its blocks' largest magnitudes, bf16 bits.
__device__ inline float reduce_amax(uint32_t magnitude) {
  __shared__ uint32_t scratch[kMaxThreads / kWarp];
  magnitude = __reduce_max_sync(~0u, magnitude);
  if (threadIdx.x % kWarp == 0) scratch[threadIdx.x / kWarp] = magnitude;
  __syncthreads();
  const int lane = int(threadIdx.x % kWarp), warps = int(blockDim.x / kWarp);
  magnitude = __reduce_max_sync(~0u, lane < warps ? scratch[lane] : 0);
  return __uint_as_float(amax_bits(magnitude << 16));
}

// Bytes of a row's scales, row-major or swizzled: groups of four.
struct ScalePlace {
  uint8_t* row;
  unsigned group_stride;
  __device__ ScalePlace(const Quantized& out, int64_t r, int columns)
      : row(out.scales + (out.swizzled ? swizzled_scale_offset(r, 0, columns) : r * columns)),
        group_stride(out.swizzled ? 512 : 4) {}
  __device__ uint8_t& operator[](unsigned block) const {
    return row[block / 4 * group_stride + block % 4];
  }
};

template <Rule kRule, Metric kMetric>
__device__ void quantize_block(
    const Words& words, float b, float dec, uint2& codes, uint8_t& scale) {
  using Choose = Chooser<kRule, kMetric>;
  Choice choice;
  Choose::choose(words, b, dec, choice);
  codes = encode_exactly<Choose::kClamp>(words.w, choice.step, choice.inverse);
  scale = uint8_t(choice.scale);
}

__device__ inline float low_float(uint32_t word) { return __uint_as_float(word << 16); }
__device__ inline float high_float(uint32_t word) { return __uint_as_float(word & 0xffff0000u); }
__device__ inline uint32_t pair(float low, float high) {
  const __nv_bfloat162 both = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&both);
}

__device__ inline void load_words(const uint4* from, uint32_t (&w)[kWords]) {
  const uint4 a = __ldcs(from), b = __ldcs(from + 1);
  w[0] = a.x, w[1] = a.y, w[2] = a.z, w[3] = a.w;
  w[4] = b.x, w[5] = b.y, w[6] = b.z, w[7] = b.w;
}

__device__ inline float square_sum(const uint32_t (&w)[kWords]) {
  float sum = 0;
#pragma unroll
  for (int i = 0; i < kWords; ++i) {
    const float low = low_float(w[i]), high = high_float(w[i]);
    sum += low * low;
    sum += high * high;
  }
  return sum;
}

__device__ inline void apply_norm(const float* weight, float scale, uint32_t (&w)[kWords]) {
  const auto* from = reinterpret_cast<const float4*>(weight);
#pragma unroll
  for (int i = 0; i < kWords; i += 2) {
    const float4 v = __ldg(from + i / 2);
    w[i] = pair(low_float(w[i]) * scale * v.x, high_float(w[i]) * scale * v.y);
    w[i + 1] = pair(low_float(w[i + 1]) * scale * v.z, high_float(w[i + 1]) * scale * v.w);
  }
}

__device__ inline float silu(float x) { return __fdividef(x, 1.0f + __expf(-x)); }

__device__ inline void apply_swiglu(const uint4* up, uint32_t (&w)[kWords]) {
  uint32_t u[kWords];
  load_words(up, u);
#pragma unroll
  for (int i = 0; i < kWords; ++i)
    w[i] = pair(silu(low_float(w[i])) * low_float(u[i]), silu(high_float(w[i])) * high_float(u[i]));
}

// A thread's blocks of the row at `from`, as they are to be quantised. Beyond the row's end the
// last block again, which does amax no harm.
template <Input kInput>
__device__ void load_blocks(const RowParams& params,
                            const uint4* from,
                            unsigned first,
                            uint32_t (&w)[kPerThread][kWords]) {
  const unsigned columns = unsigned(params.columns), step = blockDim.x;
  float squares = 0;
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    const unsigned at = min(first + i * step, columns - 1);
    load_words(from + 2 * at, w[i]);
    if constexpr (kInput == Input::kSwiGlu) apply_swiglu(from + 2 * (columns + at), w[i]);
    if constexpr (kInput == Input::kNorm)
      squares += at == first + i * step ? square_sum(w[i]) : 0.0f;
  }
  if constexpr (kInput == Input::kNorm) {
    __shared__ float scratch[kWarp + 1];
    const float mean = block_sum(squares, scratch) / float(columns * kBlock);
    const float scale = rsqrtf(mean + params.eps);
#pragma unroll
    for (int i = 0; i < kPerThread; ++i)
      apply_norm(params.weight + min(first + i * step, columns - 1) * kBlock, scale, w[i]);
  }
}

// The grid is rows x parts of a row. magnitudes: kMagnitudes.
template <Input kInput, Rule kRule, Metric kMetric, int kThreads, int kBlocks>
__global__ void __launch_bounds__(kThreads, kBlocks)
    rows_bf16_kernel(const __grid_constant__ RowParams params, bool reversed, uint32_t magnitudes) {
  const int64_t r = reversed ? gridDim.x - 1 - blockIdx.x : blockIdx.x;
  const unsigned columns = unsigned(params.columns), step = blockDim.x;
  const unsigned first = blockIdx.y * (kPerThread * step) + threadIdx.x;
  const auto* from =
      reinterpret_cast<const uint4*>(static_cast<const __nv_bfloat16*>(params.x) + r * params.ld);
  uint32_t w[kPerThread][kWords], magnitude[kPerThread];
  load_blocks<kInput>(params, from, first, w);
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) magnitude[i] = block_magnitude(w[i]);
  const float amax = params.amax != nullptr ? params.amax[params.amax_per_row ? r : 0]
                                            : reduce_amax(max(magnitude[0], magnitude[1]));
  const RowScale scale = row_scale(amax, params.rules.top);
  auto* codes = reinterpret_cast<uint2*>(params.out.codes) + r * columns;
  const ScalePlace scales(params.out, r, int(columns));
  uint32_t aside = 0;
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    const unsigned block = first + i * step;
    const float bmax = __uint_as_float(magnitude[i] << 16);
    const float part = kRule == Rule::kStatic6 && params.rules.rule == Rule::kStatic4
                           ? bmax * 0.25f
                           : quotient(bmax, 6.0f, 1.0f / 6.0f);
    const float b = __fmul_rn(part, scale.enc);
    if (block >= columns) continue;
    if (usual(b))
      quantize_block<kRule, kMetric>({w[i], magnitude[i], magnitudes}, b, scale.dec, codes[block],
                                     scales[block]);
    else
      aside |= 1u << i;
  }
  if constexpr (kInput == Input::kPlain) {
    // What was read is read again: kept till here, it would cost registers.
    for (int i = 0; aside != 0; ++i, aside >>= 1) {
      const unsigned block = first + i * step;
      if (aside & 1u) exact_block(params, r, block, amax, from[2 * block], from[2 * block + 1]);
    }
  } else {
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
      if (aside >> i & 1u)
        exact_block(params, r, first + i * step, amax, {w[i][0], w[i][1], w[i][2], w[i][3]},
                    {w[i][4], w[i][5], w[i][6], w[i][7]});
    }
  }
  if (threadIdx.x == 0 && blockIdx.y == 0 && params.out.multiplier != nullptr &&
      (r == 0 || params.amax == nullptr || params.amax_per_row))
    params.out.multiplier[r] = multiplier_of(amax, params.rules.top);
}

}  // namespace longspur::kernels::nvfp4::cuda
