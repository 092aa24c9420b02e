// Products for AVX2 with FMA and F16C: 16 rows are two registers. 4-bit weights: the vpmaddubsw
// pairs of eight parts add up in 16 bits (8 * 2 * 15 * 127 = 30,480 fits), then one vpmaddwd a
// block. 8-bit weights are taken back to signed and multiplied as |w| * sign(x, w), whose pair sums
// reach at most 2 * 128 * 127 = 32,512; the zero point's offset is then not needed.
#include <immintrin.h>

#define QGEMM_LANES 8
#include "kernels/qgemm/cpu/float-inl.h"
#include "kernels/qgemm/cpu/input-inl.h"
#include "kernels/qgemm/cpu/quant-inl.h"
#include "kernels/qgemm/params.h"

namespace longspur::kernels::qgemm {
namespace {

constexpr int64_t kPrefetch = 8192;  // bytes ahead in a stream of weights

inline __m256i load256(const std::byte* p) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
}
inline __m256i four_codes(const std::byte* p) {
  int32_t four;
  __builtin_memcpy(&four, p, sizeof four);
  return _mm256_set1_epi32(four);
}
inline __m256 eight_halves(const std::byte* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
inline float float_at(const std::byte* p) {
  float value;
  __builtin_memcpy(&value, p, sizeof value);
  return value;
}

// dot[t]: 8 rows (half h of a block) times the 32 codes at codes + t * kBlock, as 32-bit sums.
template <WeightKind kKind, int kTokens>
inline void dot_block(const std::byte* half, const std::byte* codes, __m256i (&dot)[kTokens]) {
  const __m256i ones = _mm256_set1_epi16(1);
  for (int t = 0; t < kTokens; ++t) dot[t] = _mm256_setzero_si256();
  if constexpr (kKind == kQ8_0Kind) {
    const __m256i zero_point = _mm256_set1_epi8(-128);
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) {
      const __m256i w = _mm256_xor_si256(load256(half + 64 * j), zero_point);
      const __m256i magnitude = _mm256_abs_epi8(w);
#pragma GCC unroll 4
      for (int t = 0; t < kTokens; ++t) {
        const __m256i x = four_codes(codes + t * kBlock + 4 * j);
        const __m256i pairs = _mm256_maddubs_epi16(magnitude, _mm256_sign_epi8(x, w));
        dot[t] = _mm256_add_epi32(dot[t], _mm256_madd_epi16(pairs, ones));
      }
    }
  } else {
    const __m256i mask = _mm256_set1_epi8(0x0f);
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      const __m256i packed = load256(half + 64 * j);
      const __m256i low = _mm256_and_si256(packed, mask);
      const __m256i high = _mm256_and_si256(_mm256_srli_epi16(packed, 4), mask);
#pragma GCC unroll 4
      for (int t = 0; t < kTokens; ++t) {
        const std::byte* x = codes + t * kBlock + 4 * j;
        dot[t] = _mm256_add_epi16(dot[t], _mm256_maddubs_epi16(low, four_codes(x)));
        dot[t] = _mm256_add_epi16(dot[t], _mm256_maddubs_epi16(high, four_codes(x + 16)));
      }
    }
#pragma GCC unroll 4
    for (int t = 0; t < kTokens; ++t) dot[t] = _mm256_madd_epi16(dot[t], ones);
  }
}

// 8 rows (half h of a block) times the high bytes of a token's peak, as 32-bit sums.
template <WeightKind kKind>
inline __m256i dot_peak(const std::byte* half, const std::byte* at) {
  Peak peak;
  __builtin_memcpy(&peak, at, sizeof peak);
  const __m256i ones = _mm256_set1_epi16(1), x = four_codes(at);
  if constexpr (kKind == kQ8_0Kind) {
    const __m256i w = _mm256_xor_si256(load256(half + 64 * peak.part), _mm256_set1_epi8(-128));
    const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w));
    return _mm256_madd_epi16(pairs, ones);
  } else {
    const __m128i shift = _mm_cvtsi32_si128(peak.part & 4);
    const __m256i packed = _mm256_srl_epi16(load256(half + 64 * (peak.part & 3)), shift);
    const __m256i w = _mm256_and_si256(packed, _mm256_set1_epi8(0x0f));
    return _mm256_madd_epi16(_mm256_maddubs_epi16(w, x), ones);
  }
}

struct Avx2 {
  static constexpr int kMostTokens = 4;  // 4 dot products, their 8 sums and 2 weights of 16
  static constexpr int kFloatGroups = 1;
  static constexpr int kFloatTokens = 6;  // 12 sums, 2 weights, 1 broadcast of 16 registers

  struct Rows16 {
    __m256 v[2];
    void clear() { v[0] = v[1] = _mm256_setzero_ps(); }
    void madd(const Rows16& w, float x) {
      const __m256 splat_x = _mm256_set1_ps(x);
      v[0] = _mm256_fmadd_ps(w.v[0], splat_x, v[0]);
      v[1] = _mm256_fmadd_ps(w.v[1], splat_x, v[1]);
    }
  };

  template <WeightKind kKind>
  static Rows16 load_weights(const std::byte* p) {
    if constexpr (kKind == kF32Kind) {
      const float* f = reinterpret_cast<const float*>(p);
      return {{_mm256_loadu_ps(f), _mm256_loadu_ps(f + 8)}};
    } else if constexpr (kKind == kF16Kind) {
      return {{eight_halves(p), eight_halves(p + 16)}};
    } else {
      const auto expand = [](const std::byte* q) {
        const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(q));
        return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
      };
      return {{expand(p), expand(p + 16)}};
    }
  }

  static void write_rows(const ProductParams& p, const Rows16& sum, int64_t token, int64_t row) {
    float* y = p.y + token * p.ldy + row;
    const float* bias = p.bias == nullptr ? nullptr : p.bias + row;
    if (p.n - row < kGroupRows) {
      float values[kGroupRows];
      _mm256_storeu_ps(values, sum.v[0]);
      _mm256_storeu_ps(values + 8, sum.v[1]);
      for (int64_t r = 0; r < p.n - row; ++r) {
        const float value = bias == nullptr ? values[r] : values[r] + bias[r];
        y[r] = p.accumulate ? y[r] + value : value;
      }
      return;
    }
    for (int h = 0; h < 2; ++h) {
      __m256 value = sum.v[h];
      if (bias != nullptr) value = _mm256_add_ps(value, _mm256_loadu_ps(bias + 8 * h));
      if (p.accumulate) value = _mm256_add_ps(_mm256_loadu_ps(y + 8 * h), value);
      _mm256_storeu_ps(y + 8 * h, value);
    }
  }

  template <WeightKind kKind, int kTokens, CodeKind kCodes>
  static void block_tile(const ProductParams& p,
                         const std::byte* weight,
                         const Piece& piece,
                         int64_t row) {
    constexpr bool kTwo = kCodes == kInt15Codes;
    constexpr int64_t kBytes = block_bytes(kKind);
    constexpr int64_t kScales = kKind == kQ8_0Kind ? 512 : 256;
    const int64_t low = piece.width * kBlock, offset = piece.width * 4;
    const std::byte* scale = piece.scale;
    const std::byte* codes = piece.codes;
    const std::byte* peaks = piece.peaks;
    Rows16 sum[kTokens];
    for (int t = 0; t < kTokens; ++t) sum[t].clear();
    for (int64_t k = 0; k < p.k; k += kBlock, weight += kBytes) {
      if constexpr (kTokens == 1) {
        for (int64_t line = 0; line < kBytes; line += 64)
          _mm_prefetch(weight + kPrefetch + line, _MM_HINT_T0);
      }
#pragma GCC unroll 2
      for (int h = 0; h < 2; ++h) {
        __m256i dot[kTokens];
        dot_block<kKind, kTokens>(weight + 32 * h, codes, dot);
        if constexpr (kTwo) {
          __m256i fine[kTokens];
          dot_block<kKind, kTokens>(weight + 32 * h, codes + low, fine);
          for (int t = 0; t < kTokens; ++t)
            dot[t] = _mm256_add_epi32(fine[t], _mm256_slli_epi32(dot[t], 7));
        } else {
          for (int t = 0; t < kTokens; ++t) {
            const __m256i high = dot_peak<kKind>(weight + 32 * h, peaks + t * int(sizeof(Peak)));
            dot[t] = _mm256_add_epi32(dot[t], _mm256_slli_epi32(high, 7));
          }
        }
        const __m256 d = eight_halves(weight + kScales + 16 * h);
        __m256 m{};
        if constexpr (kKind == kQ4_1Kind) m = eight_halves(weight + kScales + 32 + 16 * h);
#pragma GCC unroll 4
        for (int t = 0; t < kTokens; ++t) {
          if constexpr (kKind == kQ4_0Kind)
            dot[t] = _mm256_add_epi32(dot[t], four_codes(scale + offset + 4 * t));
          const __m256 ds = _mm256_mul_ps(d, _mm256_set1_ps(float_at(scale + 4 * t)));
          __m256& total = sum[t].v[h];
          total = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot[t]), ds, total);
          if constexpr (kKind == kQ4_1Kind)
            total = _mm256_fmadd_ps(m, _mm256_set1_ps(float_at(scale + offset + 4 * t)), total);
        }
      }
      scale += piece.block_bytes;
      codes += piece.block_bytes;
      peaks += piece.block_bytes;
    }
    for (int t = 0; t < kTokens; ++t) write_rows(p, sum[t], piece.token + t, row);
  }
};

}  // namespace

const KernelTable kAvx2Kernels = {
    .isa = "avx2",
    .input = run_input,
    .product = {quant_product<Avx2, kQ4_1Kind>, quant_product<Avx2, kQ4_0Kind>,
                quant_product<Avx2, kQ8_0Kind>, nvfp4_product_avx2, float_product<Avx2, kF32Kind>,
                float_product<Avx2, kF16Kind>, float_product<Avx2, kBF16Kind>},
};

}  // namespace longspur::kernels::qgemm
