// Products of NVFP4 weights for AVX2 with FMA and F16C: 16 rows are two registers. Codes become
// 12 + twice their value, 0 .. 24, by a table look-up; the vpmaddubsw pairs of a half's four parts
// add up in 16 bits (4 * 2 * 24 * 127 = 24,384 fits), then one vpmaddwd makes the exact dot
// product.
#include <immintrin.h>

#include <cstddef>

#include "kernels/qgemm/cpu/quant-inl.h"
#include "kernels/qgemm/params.h"

namespace longspur::kernels::qgemm {
namespace {

constexpr int64_t kPrefetch = 8192;  // as for the other types
constexpr float kUnit = 128.0f;      // 2^8 of scales_of, 2^-1 of the doubled values

inline __m256i broadcast_four(const std::byte* p) {
  int32_t four;
  __builtin_memcpy(&four, p, sizeof four);
  return _mm256_set1_epi32(four);
}
inline __m256 broadcast_float(const std::byte* p) {
  float value;
  __builtin_memcpy(&value, p, sizeof value);
  return _mm256_set1_ps(value);
}

// The low four bits of each byte, decoded.
inline __m256i values_of(__m256i codes) {
  const __m128i table = _mm_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0);
  return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(table),
                             _mm256_and_si256(codes, _mm256_set1_epi8(0x0f)));
}

// E4M3 bits are those of an fp16 number 2^-8 as large, subnormal ones too, once moved by 7.
inline __m256 scales_of(const std::byte* p) {
  const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
  return _mm256_cvtph_ps(_mm_slli_epi16(_mm_cvtepu8_epi16(bytes), 7));
}

inline __m256i sum_of_pairs(__m256i words) {
  return _mm256_madd_epi16(words, _mm256_set1_epi16(1));
}

// Both halves of a block, 8 rows at `rows`, times 32 codes a token: exact dot products.
template <int kTokens>
inline void dot_block(const std::byte* rows, const std::byte* codes, __m256i (&dot)[kTokens][2]) {
  for (int t = 0; t < kTokens; ++t) dot[t][0] = dot[t][1] = _mm256_setzero_si256();
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const __m256i packed = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(rows + 64 * j));
    const __m256i low = values_of(packed), high = values_of(_mm256_srli_epi16(packed, 4));
#pragma GCC unroll 4
    for (int t = 0; t < kTokens; ++t) {
      const std::byte* x = codes + t * kBlock + 4 * j;
      dot[t][0] = _mm256_add_epi16(dot[t][0], _mm256_maddubs_epi16(low, broadcast_four(x)));
      dot[t][1] =
          _mm256_add_epi16(dot[t][1], _mm256_maddubs_epi16(high, broadcast_four(x + kHalf)));
    }
  }
  for (int t = 0; t < kTokens; ++t)
    for (int h = 0; h < 2; ++h) dot[t][h] = sum_of_pairs(dot[t][h]);
}

// Adds 128 times the dot products with a token's peak.
inline void add_peak(const std::byte* rows, const std::byte* peak, __m256i (&dot)[2]) {
  int32_t part;
  __builtin_memcpy(&part, peak + offsetof(PeakOfHalves, part), sizeof part);
  const __m256i packed =
      _mm256_loadu_si256(reinterpret_cast<const __m256i*>(rows + 64 * (part & 3)));
  const __m256i w = values_of(_mm256_srl_epi16(packed, _mm_cvtsi32_si128(part & 4)));
  for (int h = 0; h < 2; ++h) {
    const __m256i high = sum_of_pairs(_mm256_maddubs_epi16(w, broadcast_four(peak + 4 * h)));
    dot[h] = _mm256_add_epi32(dot[h], _mm256_slli_epi32(high, 7));
  }
}

struct Avx2 {
  static constexpr int kMostTokens = 4;

  struct Rows16 {
    __m256 v[2];
  };

  static void write_rows(const ProductParams& p, const Rows16& sum, int64_t token, int64_t row) {
    const int64_t rows = p.n - row < kGroupRows ? p.n - row : kGroupRows;
    float values[kGroupRows];
    for (int h = 0; h < 2; ++h) {
      __m256 value = _mm256_mul_ps(sum.v[h], _mm256_set1_ps(kUnit));
      value = _mm256_mul_ps(value, _mm256_loadu_ps(p.row_scale + row + 8 * h));
      if (p.token_scale != nullptr)
        value = _mm256_mul_ps(value, _mm256_set1_ps(p.token_scale[token]));
      _mm256_storeu_ps(values + 8 * h, value);
    }
    float* y = p.y + token * p.ldy + row;
    for (int64_t r = 0; r < rows; ++r) {
      const float value = p.bias == nullptr ? values[r] : values[r] + p.bias[row + r];
      y[r] = p.accumulate ? y[r] + value : value;
    }
  }

  template <WeightKind kKind, int kTokens, CodeKind kCodes>
  static void block_tile(const ProductParams& p,
                         const std::byte* weight,
                         const Piece& piece,
                         int64_t row) {
    constexpr int64_t kBytes = block_bytes(kKind);
    const int64_t low = piece.width * kBlock, next = piece.width * 4;
    const std::byte* scale = piece.scale;
    const std::byte* codes = piece.codes;
    const std::byte* peaks = piece.peaks;
    Rows16 sum[kTokens];
    for (Rows16& s : sum) s.v[0] = s.v[1] = _mm256_setzero_ps();
    for (int64_t k = 0; k < p.k; k += kBlock, weight += kBytes) {
      if constexpr (kTokens == 1) {
        for (int64_t line = 0; line < kBytes; line += 64)
          _mm_prefetch(weight + kPrefetch + line, _MM_HINT_T0);
      }
#pragma GCC unroll 2
      for (int h = 0; h < 2; ++h) {
        const std::byte* rows = weight + 32 * h;
        __m256i dot[kTokens][2];
        dot_block<kTokens>(rows, codes, dot);
        if constexpr (kCodes == kInt15Codes) {
          __m256i fine[kTokens][2];
          dot_block<kTokens>(rows, codes + low, fine);
          for (int t = 0; t < kTokens; ++t)
            for (int i = 0; i < 2; ++i)
              dot[t][i] = _mm256_add_epi32(fine[t][i], _mm256_slli_epi32(dot[t][i], 7));
        }
        const __m256 d0 = scales_of(weight + 256 + 8 * h), d1 = scales_of(weight + 272 + 8 * h);
#pragma GCC unroll 4
        for (int t = 0; t < kTokens; ++t) {
          if constexpr (kCodes == kPeakCodes)
            add_peak(rows, peaks + t * int(sizeof(PeakOfHalves)), dot[t]);
          add_block<kCodes>(dot[t], d0, d1, scale + 4 * t, next, sum[t].v[h]);
        }
      }
      scale += piece.block_bytes;
      codes += piece.block_bytes;
      peaks += piece.block_bytes;
    }
    for (int t = 0; t < kTokens; ++t) write_rows(p, sum[t], piece.token + t, row);
  }

  // Takes the zero point off a token's dot products and adds them, scaled, to its sum.
  template <CodeKind kCodes>
  static void add_block(const __m256i (&dot)[2],
                        __m256 d0,
                        __m256 d1,
                        const std::byte* scale,
                        int64_t next,
                        __m256& sum) {
    const std::byte* offset = scale + (kCodes == kNvfp4Codes ? 2 : 1) * next;
    const __m256 first = _mm256_cvtepi32_ps(_mm256_add_epi32(dot[0], broadcast_four(offset)));
    const __m256 second =
        _mm256_cvtepi32_ps(_mm256_add_epi32(dot[1], broadcast_four(offset + next)));
    if constexpr (kCodes == kNvfp4Codes) {
      sum = _mm256_fmadd_ps(first, _mm256_mul_ps(d0, broadcast_float(scale)), sum);
      sum = _mm256_fmadd_ps(second, _mm256_mul_ps(d1, broadcast_float(scale + next)), sum);
    } else {
      const __m256 both = _mm256_fmadd_ps(second, d1, _mm256_mul_ps(first, d0));
      sum = _mm256_fmadd_ps(both, broadcast_float(scale), sum);
    }
  }
};

}  // namespace

void nvfp4_product_avx2(const ProductParams& p,
                        int64_t group_begin,
                        int64_t group_end,
                        int64_t token_begin,
                        int64_t token_end) {
  quant_product<Avx2, kNvfp4Kind>(p, group_begin, group_end, token_begin, token_end);
}

}  // namespace longspur::kernels::qgemm
