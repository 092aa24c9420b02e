// The tile on AVX2 + FMA. Compiled with its own flags; nothing here may be shared with other units
// (anonymous namespace).
#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/attention/nvfp4_page.h"
#include "kernels/attention/tile.h"

namespace longspur::kernels::attention {

namespace {

struct Simd {
  static constexpr int kWidth = 8;
  static constexpr int kRows = 4,
                       kVectors = 2;  // 8 sums, 4 halves of columns, 2 of a row: 14 of 16
  using F = __m256;
  struct Pairs {
    F even, odd;
  };
  static Pairs split(__m256i words) {
    return {_mm256_castsi256_ps(_mm256_slli_epi32(words, 16)),
            _mm256_castsi256_ps(_mm256_and_si256(words, _mm256_set1_epi32(int(0xffff0000u))))};
  }
  static Pairs load_b(const uint32_t* p) {
    return split(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static Pairs load_a(const uint32_t* p) { return split(_mm256_set1_epi32(int(*p))); }
  static F dot(F c, Pairs a, Pairs b) {
    return _mm256_fmadd_ps(a.odd, b.odd, _mm256_fmadd_ps(a.even, b.even, c));
  }
  static F load_b(const float* p) { return _mm256_loadu_ps(p); }
  static F load_a(const float* p) { return _mm256_set1_ps(*p); }
  static F dot(F c, F a, F b) { return _mm256_fmadd_ps(a, b, c); }

  // kWidth bytes of two E2M1 codes to words of two bf16, the low nibble's value in the low half;
  // the products are exact in bf16.
  static void decode_pairs(const uint8_t* codes, F low_scale, F high_scale, uint32_t* out) {
    const __m256i index =
        _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(codes)));
    const F low = _mm256_mul_ps(decode(index), low_scale);
    const F high = _mm256_mul_ps(decode(_mm256_srli_epi32(index, 4)), high_scale);
    const __m256i words = _mm256_blend_epi16(_mm256_srli_epi32(_mm256_castps_si256(low), 16),
                                             _mm256_castps_si256(high), 0xaa);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), words);
  }
  // The same with something added to the low and to the high numbers, which rounds them (halves
  // away from zero).
  static void decode_pairs(const uint8_t* codes, F scale, F add_low, F add_high, uint32_t* out) {
    const __m256i half = _mm256_set1_epi32(0x8000);
    const __m256i index =
        _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(codes)));
    const F low = _mm256_fmadd_ps(decode(index), scale, add_low);
    const F high = _mm256_fmadd_ps(decode(_mm256_srli_epi32(index, 4)), scale, add_high);
    const __m256i low_bits = _mm256_add_epi32(_mm256_castps_si256(low), half);
    const __m256i high_bits = _mm256_add_epi32(_mm256_castps_si256(high), half);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out),
                        _mm256_blend_epi16(_mm256_srli_epi32(low_bits, 16), high_bits, 0xaa));
  }
  static F decode(__m256i codes) {  // of the low nibbles
    const F magnitudes = _mm256_setr_ps(0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f);
    const __m256i sign =
        _mm256_and_si256(_mm256_slli_epi32(codes, 28), _mm256_set1_epi32(int(0x80000000u)));
    return _mm256_xor_ps(_mm256_permutevar8x32_ps(magnitudes, codes), _mm256_castsi256_ps(sign));
  }

  static F zero() { return _mm256_setzero_ps(); }
  static F set1(float x) { return _mm256_set1_ps(x); }
  static F load(const float* p) { return _mm256_loadu_ps(p); }
  static void store(float* p, F v) { _mm256_storeu_ps(p, v); }
  static F add(F a, F b) { return _mm256_add_ps(a, b); }
  static F sub(F a, F b) { return _mm256_sub_ps(a, b); }
  static F mul(F a, F b) { return _mm256_mul_ps(a, b); }
  static F max(F a, F b) { return _mm256_max_ps(a, b); }
  static bool any_above(F a, F b) {
    return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GT_OQ)) != 0;
  }
  static float reduce_max(F a) {
    __m128 x = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    x = _mm_max_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)));
  }
  static float reduce_add(F a) {
    __m128 x = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    x = _mm_add_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
  }

  // 2^x for x <= 0, as in avx512-inl.h; the exponent is put together in two steps, so that results
  // down to the smallest subnormals are right and -inf gives 0.
  static F exp2(F x) {
    x = _mm256_max_ps(_mm256_set1_ps(-200.0f), x);  // in this order NaN stays
    const F n = _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const F f = _mm256_sub_ps(x, n);
    F y = _mm256_set1_ps(1.535336188319500e-4f);
    y = _mm256_fmadd_ps(y, f, _mm256_set1_ps(1.339887440266574e-3f));
    y = _mm256_fmadd_ps(y, f, _mm256_set1_ps(9.618437357674640e-3f));
    y = _mm256_fmadd_ps(y, f, _mm256_set1_ps(5.550332471162809e-2f));
    y = _mm256_fmadd_ps(y, f, _mm256_set1_ps(2.402264791363012e-1f));
    y = _mm256_fmadd_ps(y, f, _mm256_set1_ps(6.931472028550421e-1f));
    y = _mm256_fmadd_ps(y, f, _mm256_set1_ps(1.0f));
    const __m256i e = _mm256_cvtps_epi32(n), half = _mm256_srai_epi32(e, 1);
    return _mm256_mul_ps(_mm256_mul_ps(y, power(half)), power(_mm256_sub_epi32(e, half)));
  }
  static F power(__m256i e) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(e, _mm256_set1_epi32(127)), 23));
  }

  static void load_halves(const uint16_t* from, int64_t n, float* to) {
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) {
      const auto* at = reinterpret_cast<const __m128i*>(from + i);
      _mm256_storeu_ps(to + i, _mm256_cvtph_ps(_mm_loadu_si128(at)));
    }
    for (; i < n; ++i) to[i] = _cvtsh_ss(from[i]);
  }
  static void store_halves(const float* from, int64_t n, uint16_t* to) {
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) {
      _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i),
                       _mm256_cvtps_ph(_mm256_loadu_ps(from + i), _MM_FROUND_TO_NEAREST_INT));
    }
    for (; i < n; ++i) to[i] = _cvtss_sh(from[i], _MM_FROUND_TO_NEAREST_INT);
  }

  static F store_p(float* p, int i, F x) {
    store(p + i, x);
    return x;
  }
  static F store_p(uint32_t* p, int i, F x) {
    __m256i bits = _mm256_castps_si256(x);
    const __m256i tie = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    bits = _mm256_add_epi32(bits, _mm256_add_epi32(tie, _mm256_set1_epi32(0x7fff)));
    const __m256i high = _mm256_srli_epi32(bits, 16);
    const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(high, high), 0x08);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(reinterpret_cast<uint16_t*>(p) + i),
                     _mm256_castsi256_si128(packed));
    return _mm256_castsi256_ps(_mm256_slli_epi32(high, 16));
  }
};

#include "kernels/attention/cpu/step-inl.h"
// clang-format keeps this order: each body needs the one before.
#include "kernels/attention/cpu/nvfp4_page-inl.h"
//
#include "kernels/attention/cpu/attend-inl.h"
//
#include "kernels/attention/cpu/means-inl.h"
//
#include "kernels/attention/cpu/varlen-inl.h"
//
#include "kernels/attention/cpu/varlen_backward-inl.h"
//
#include "kernels/attention/cpu/scores-inl.h"

constexpr KernelTable kTable = {
    "avx2",
    attend<uint32_t>,
    attend<float>,
    append,
    block_means<uint32_t>,
    block_means<float>,
    {varlen_forward<float>, varlen_forward<float>, varlen_delta, varlen_backward, varlen_reduce},
    kScores};

}  // namespace

const KernelTable* table_avx2() { return &kTable; }

}  // namespace longspur::kernels::attention
