// Products of NVFP4 weights for AVX-512 with VNNI. A table look-up turns codes into 12 + twice
// their value, unsigned as vpdpbusd wants them; dot products of 16 elements are exact integers, of
// which two, times their decoded E4M3 scales, make a block of 32. The order of operations for a
// token does not depend on how many share its tile.
#include <immintrin.h>

#include <cstddef>

#include "kernels/qgemm/cpu/quant-inl.h"
#include "kernels/qgemm/params.h"

namespace longspur::kernels::qgemm {
namespace {

constexpr int64_t kPrefetch = 8192;  // as for the other types

inline __m512i broadcast_four(const std::byte* p) {
  int32_t four;
  __builtin_memcpy(&four, p, sizeof four);
  return _mm512_set1_epi32(four);
}
inline __m512 broadcast_float(const std::byte* p) {
  float value;
  __builtin_memcpy(&value, p, sizeof value);
  return _mm512_set1_ps(value);
}

inline __m512i values_of(__m512i codes) {
  const __m128i table = _mm_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0);
  return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(table), codes);
}

// E4M3 bits are those of an fp16 number 2^-8 as large, subnormal ones too, once moved by 7.
inline __m512 scales_of(const std::byte* p) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm512_cvtph_ps(_mm256_slli_epi16(_mm256_cvtepu8_epi16(bytes), 7));
}
constexpr float kUnit = 128.0f;  // 2^8 of the scales, 2^-1 of the doubled values

struct Block {
  __m512i w[8];  // part j: k = 4j .. 4j + 3
  __m512 d[2];
};

inline Block load_block(const std::byte* p) {
  const __m512i mask = _mm512_set1_epi8(0x0f);
  Block block;
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const __m512i packed = _mm512_loadu_si512(p + 64 * j);
    block.w[j] = values_of(_mm512_and_si512(packed, mask));
    block.w[j + 4] = values_of(_mm512_and_si512(_mm512_srli_epi16(packed, 4), mask));
  }
  block.d[0] = scales_of(p + 256);
  block.d[1] = scales_of(p + 272);
  return block;
}

// Where a token's peak finds its part of a block's weights: in a copy (registers cannot be
// indexed), or decoded again for a single token.
template <bool kCopied>
struct Parts {
  const std::byte* block;
  alignas(64) std::byte copy[kCopied ? 512 : 1];

  void set(const std::byte* at, const __m512i (&w)[8]) {
    block = at;
    if constexpr (kCopied) {
#pragma GCC unroll 8
      for (int j = 0; j < 8; ++j) _mm512_store_si512(copy + 64 * j, w[j]);
    }
  }
  __m512i operator[](int32_t part) const {
    if constexpr (kCopied) return _mm512_load_si512(copy + 64 * part);
    const __m512i packed = _mm512_loadu_si512(block + 64 * (part & 3));
    const __m512i codes = _mm512_srl_epi16(packed, _mm_cvtsi32_si128(part & 4));
    return values_of(_mm512_and_si512(codes, _mm512_set1_epi8(0x0f)));
  }
};

// Adds the codes of kTokens tokens times the weights of each half to dot[token][half]; as many
// chains of vpdpbusd are in flight.
template <int kTokens>
inline void add_dots(const __m512i (&w)[8], const std::byte* codes, __m512i (&dot)[kTokens][2]) {
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
#pragma GCC unroll 2
    for (int t = 0; t < kTokens; ++t) {
      const std::byte* x = codes + t * kBlock + 4 * j;
      dot[t][0] = _mm512_dpbusd_epi32(dot[t][0], w[j], broadcast_four(x));
      dot[t][1] = _mm512_dpbusd_epi32(dot[t][1], w[j + 4], broadcast_four(x + kHalf));
    }
  }
}

// Where a block of a piece of tokens lies.
struct TokenBlock {
  const std::byte* scale;
  const std::byte* codes;
  const std::byte* peaks;
  int64_t next;  // from a token's scale to its next four bytes
  int64_t low;   // from codes
};

// The integer dot products of both halves, without the weights' zero point.
template <CodeKind kCodes, int kTokens, class PartsOf>
inline void dot_products(const Block& block,
                         const PartsOf& parts,
                         const TokenBlock& x,
                         __m512i (&dot)[kTokens][2]) {
#pragma GCC unroll 2
  for (int t = 0; t < kTokens; ++t) {
    dot[t][0] = dot[t][1] = _mm512_setzero_si512();
    if constexpr (kCodes == kPeakCodes) {
      const std::byte* peak = x.peaks + t * int(sizeof(PeakOfHalves));
      int32_t part;
      __builtin_memcpy(&part, peak + offsetof(PeakOfHalves, part), sizeof part);
      const __m512i w = parts[part];
      dot[t][0] = _mm512_dpbusd_epi32(dot[t][0], w, broadcast_four(peak));
      dot[t][1] = _mm512_dpbusd_epi32(dot[t][1], w, broadcast_four(peak + 4));
    }
  }
  if constexpr (kCodes == kInt15Codes) add_dots(block.w, x.codes, dot);
#pragma GCC unroll 2
  for (int t = 0; t < kTokens; ++t) {
    const std::byte* offset = x.scale + 4 * t + (kCodes == kNvfp4Codes ? 2 : 1) * x.next;
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h) {
      const __m512i upper = _mm512_slli_epi32(dot[t][h], 7);
      dot[t][h] = _mm512_add_epi32(upper, broadcast_four(offset + h * x.next));
    }
  }
  add_dots(block.w, x.codes + (kCodes == kInt15Codes ? x.low : 0), dot);
}

// Adds a block times kTokens tokens to their sums.
template <CodeKind kCodes, int kTokens, class PartsOf>
inline void add_block(const Block& block, const PartsOf& parts, const TokenBlock& x, __m512* sum) {
  __m512i dot[kTokens][2];
  dot_products<kCodes>(block, parts, x, dot);
#pragma GCC unroll 2
  for (int t = 0; t < kTokens; ++t) {
    const __m512 first = _mm512_cvtepi32_ps(dot[t][0]), second = _mm512_cvtepi32_ps(dot[t][1]);
    const __m512 scale = broadcast_float(x.scale + 4 * t);
    if constexpr (kCodes == kNvfp4Codes) {
      const __m512 scale2 = broadcast_float(x.scale + 4 * t + x.next);
      sum[t] = _mm512_fmadd_ps(first, _mm512_mul_ps(block.d[0], scale), sum[t]);
      sum[t] = _mm512_fmadd_ps(second, _mm512_mul_ps(block.d[1], scale2), sum[t]);
    } else {
      const __m512 both = _mm512_fmadd_ps(second, block.d[1], _mm512_mul_ps(first, block.d[0]));
      sum[t] = _mm512_fmadd_ps(both, scale, sum[t]);
    }
  }
}

void write_rows(const ProductParams& p, __m512 sum, int64_t token, int64_t row) {
  const int64_t rows = p.n - row;
  const __mmask16 mask = rows >= kGroupRows ? 0xffff : __mmask16((1u << rows) - 1);
  __m512 value = _mm512_mul_ps(sum, _mm512_set1_ps(kUnit));
  value = _mm512_mul_ps(value, _mm512_loadu_ps(p.row_scale + row));
  if (p.token_scale != nullptr) value = _mm512_mul_ps(value, _mm512_set1_ps(p.token_scale[token]));
  if (p.bias != nullptr) value = _mm512_add_ps(value, _mm512_maskz_loadu_ps(mask, p.bias + row));
  float* y = p.y + token * p.ldy + row;
  if (p.accumulate) value = _mm512_add_ps(value, _mm512_maskz_loadu_ps(mask, y));
  _mm512_mask_storeu_ps(y, mask, value);
}

struct Avx512 {
  static constexpr int kMostTokens = 16;  // 16 sums, 8 weights, 2 scales, 4 dots of 32 registers

  template <WeightKind kKind, int kTokens, CodeKind kCodes>
  static void block_tile(const ProductParams& p,
                         const std::byte* weight,
                         const Piece& piece,
                         int64_t row) {
    constexpr int64_t kBytes = block_bytes(kKind);
    constexpr int kChains = kTokens < 2 ? kTokens : 2;
    const bool streaming = piece.token < kTokens;  // later tokens find the weights in cache
    TokenBlock x{piece.scale, piece.codes, piece.peaks, piece.width * 4, piece.width * kBlock};
    Parts<kCodes == kPeakCodes && (kTokens > 1)> parts;
    __m512 sum[kTokens];
#pragma GCC unroll 16
    for (int t = 0; t < kTokens; ++t) sum[t] = _mm512_setzero_ps();
    for (int64_t k = 0; k < p.k; k += kBlock, weight += kBytes) {
      if (streaming) {
#pragma GCC unroll 5
        for (int64_t line = 0; line < kBytes; line += 64)
          _mm_prefetch(weight + kPrefetch + line, _MM_HINT_T0);
      }
      const Block block = load_block(weight);
      parts.set(weight, block.w);
#pragma GCC unroll 16
      for (int t = 0; t < kTokens; t += kChains)
        add_block<kCodes, kChains>(block, parts,
                                   {x.scale + 4 * t, x.codes + kBlock * t,
                                    x.peaks + int(sizeof(PeakOfHalves)) * t, x.next, x.low},
                                   sum + t);
      x.scale += piece.block_bytes;
      x.codes += piece.block_bytes;
      x.peaks += piece.block_bytes;
    }
#pragma GCC unroll 16
    for (int t = 0; t < kTokens; ++t) write_rows(p, sum[t], piece.token + t, row);
  }
};

}  // namespace

void nvfp4_product_avx512(const ProductParams& p,
                          int64_t group_begin,
                          int64_t group_end,
                          int64_t token_begin,
                          int64_t token_end) {
  quant_product<Avx512, kNvfp4Kind>(p, group_begin, group_end, token_begin, token_end);
}

}  // namespace longspur::kernels::qgemm
