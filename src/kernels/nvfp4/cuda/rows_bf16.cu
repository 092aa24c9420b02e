// Rows of bf16 quantised at the speed of memory: a thread block a row (or a part of one, where amax
// is known), a thread two blocks of 16, in registers from the one read to the store. Blocks with
// unusual numbers (a scale near or below the smallest normal one, an amax near the ends of fp32,
// NaN, infinity) are put aside and done by the exact formulas at the end.
#include "kernels/common/cuda/launch.cuh"
#include "kernels/nvfp4/cuda/kernels.cuh"
#include "kernels/nvfp4/cuda/rows_bf16.cuh"

namespace longspur::kernels::nvfp4::cuda {

namespace {

constexpr int kPerThread = 2;
constexpr int kMaxThreads = 512;

// What a row's amax fixes. Unusual amax gives an enc that no block's b passes with.
struct RowScale {
  float enc, dec;
};
__device__ RowScale row_scale(float amax, float top) {
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
__device__ bool usual(float b) { return b >= 0.03125f && b < 464.0f; }

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
    // What halves cannot tell from zero keeps 6, as blocks that both scales hit exactly must.
    constexpr float kNothing = kMetric == Metric::kMse ? -0x1p-20f : -0x1p-8f;
    const bool four = total(gain) < kNothing;
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

__device__ __noinline__ void exact_block(const RowParams& params,
                                         int64_t r,
                                         int64_t block,
                                         float amax) {
  const auto* from = static_cast<const __nv_bfloat16*>(params.x) + r * params.ld + block * kBlock;
  float x[kBlock];
#pragma unroll
  for (int i = 0; i < kBlock; ++i) x[i] = widen(from[i]);
  const Encoding e = encoding_of(amax, params.rules);
  const uint32_t scale = choose_scale<false>(params.rules, e, x, nullptr);
  store_block(params.out, r, block, params.columns, encode_block(params.rules, e, x, scale, 0),
              scale);
}

// The row's amax from its blocks' largest magnitudes, bf16 bits.
__device__ float reduce_amax(uint32_t magnitude) {
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

// The grid is rows x parts of a row. magnitudes: kMagnitudes.
template <Rule kRule, Metric kMetric, int kThreads, int kBlocks>
__global__ void __launch_bounds__(kThreads, kBlocks)
    rows_bf16_kernel(const __grid_constant__ RowParams params, bool reversed, uint32_t magnitudes) {
  const int64_t r = reversed ? gridDim.x - 1 - blockIdx.x : blockIdx.x;
  const unsigned columns = unsigned(params.columns), step = blockDim.x;
  const unsigned first = blockIdx.y * (kPerThread * step) + threadIdx.x;
  const auto* from =
      reinterpret_cast<const uint4*>(static_cast<const __nv_bfloat16*>(params.x) + r * params.ld);
  uint32_t w[kPerThread][kWords], magnitude[kPerThread];
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    const unsigned block = first + i * step;
    const unsigned at = min(block, columns - 1);  // a block twice does amax no harm
    const uint4 a = __ldcs(from + 2 * at), b = __ldcs(from + 2 * at + 1);
    w[i][0] = a.x, w[i][1] = a.y, w[i][2] = a.z, w[i][3] = a.w;
    w[i][4] = b.x, w[i][5] = b.y, w[i][6] = b.z, w[i][7] = b.w;
  }
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
  for (int i = 0; aside != 0; ++i, aside >>= 1)
    if (aside & 1u) exact_block(params, r, first + i * step, amax);
  if (threadIdx.x == 0 && blockIdx.y == 0 && params.out.multiplier != nullptr &&
      (r == 0 || params.amax == nullptr || params.amax_per_row))
    params.out.multiplier[r] = multiplier_of(amax, params.rules.top);
}

__global__ void __launch_bounds__(256) amax_bf16_kernel(
    const __nv_bfloat16* x, int64_t rows, int64_t vectors, int64_t ld, float* amax) {
  __shared__ uint32_t scratch[256 / kWarp];
  uint32_t most = 0;
  for (int64_t r = blockIdx.x; r < rows; r += gridDim.x) {
    const auto* row = reinterpret_cast<const uint4*>(x + r * ld);
#pragma unroll 4
    for (int64_t i = threadIdx.x; i < vectors; i += 256) {
      const uint4 v = row[i];
      most = __vmaxu2(most, __vmaxu2(__vmaxu2(v.x & kMagnitudes, v.y & kMagnitudes),
                                     __vmaxu2(v.z & kMagnitudes, v.w & kMagnitudes)));
    }
  }
  most = __reduce_max_sync(~0u, max(most & 0xffffu, most >> 16));
  if (threadIdx.x % kWarp == 0) scratch[threadIdx.x / kWarp] = most;
  __syncthreads();
  if (threadIdx.x >= kWarp) return;
  most = __reduce_max_sync(~0u, threadIdx.x < 256 / kWarp ? scratch[threadIdx.x] : 0);
  if (threadIdx.x == 0) atomicMax(reinterpret_cast<unsigned*>(amax), amax_bits(most << 16));
}

__global__ void zero_padding_kernel(Quantized out, int64_t rows, int64_t columns) {
  const int64_t r = blockIdx.x;
  for (int64_t block = (r < rows ? columns : 0) + threadIdx.x; block < (columns + 3) / 4 * 4;
       block += blockDim.x)
    out.scales[swizzled_scale_offset(r, block, columns)] = 0;
}

template <Rule kRule, Metric kMetric, int kBlocks>
void launch(const RowParams& params, bool reversed, cudaStream_t stream) {
  const int64_t halves = (params.columns + kPerThread - 1) / kPerThread;
  const int64_t wanted = (halves + kWarp - 1) / kWarp * kWarp;
  const bool wide = params.amax == nullptr && wanted > kMaxThreads / 2;
  const auto threads = unsigned(wide ? kMaxThreads : min(wanted, int64_t(kMaxThreads / 2)));
  const int64_t per_part = kPerThread * int64_t(threads);
  const dim3 grid(unsigned(params.rows), unsigned((params.columns + per_part - 1) / per_part));
  if (wide)
    rows_bf16_kernel<kRule, kMetric, kMaxThreads, kBlocks / 2>
        <<<grid, threads, 0, stream>>>(params, reversed, kMagnitudes);
  else
    rows_bf16_kernel<kRule, kMetric, kMaxThreads / 2, kBlocks>
        <<<grid, threads, 0, stream>>>(params, reversed, kMagnitudes);
}

}  // namespace

bool accepts_bf16(const RowParams& params) {
  const Rules& rules = params.rules;
  const bool fixed = rules.rule == Rule::kStatic6 || rules.rule == Rule::kStatic4;
  const bool scored = (rules.rule == Rule::kFourOverSix && rules.metric != Metric::kAbsMax) ||
                      (rules.rule == Rule::kSweep && rules.metric == Metric::kMse);
  return params.dtype == DType::kBF16 && params.aligned && (fixed || scored) &&
         rules.rounding == Rounding::kNearest && !rules.hadamard && params.importance == nullptr &&
         (params.amax != nullptr || params.columns <= kPerThread * kMaxThreads) &&
         params.columns < int64_t(kPerThread) * kMaxThreads / 2 * 65535;
}

void launch_rows_bf16(const RowParams& params, bool reversed, cudaStream_t stream) {
  if (params.out.swizzled && (params.rows % 128 != 0 || params.columns % 4 != 0)) {
    const int64_t rows = (params.rows + 127) / 128 * 128;
    zero_padding_kernel<<<unsigned(rows), 128, 0, stream>>>(params.out, params.rows,
                                                            params.columns);
  }
  switch (params.rules.rule) {
    case Rule::kFourOverSix:
      if (params.rules.metric == Metric::kMse)
        launch<Rule::kFourOverSix, Metric::kMse, 5>(params, reversed, stream);
      else
        launch<Rule::kFourOverSix, Metric::kMae, 5>(params, reversed, stream);
      break;
    case Rule::kSweep:
      launch<Rule::kSweep, Metric::kMse, 4>(params, reversed, stream);
      break;
    default:
      launch<Rule::kStatic6, Metric::kMse, 6>(params, reversed, stream);
  }
}

void launch_amax_bf16(const RowParams& params, float* amax, cudaStream_t stream) {
  const auto grid = unsigned(min(params.rows, int64_t(132) * 8));
  amax_bf16_kernel<<<grid, 256, 0, stream>>>(static_cast<const __nv_bfloat16*>(params.x),
                                             params.rows, params.columns * 2, params.ld, amax);
}

}  // namespace longspur::kernels::nvfp4::cuda
