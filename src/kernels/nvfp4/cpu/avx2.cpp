// AVX2 + FMA + F16C. Compiled with its own flags; nothing here may be shared with other units
// (anonymous namespace).
#include <immintrin.h>

#include <bit>
#include <cstring>
#include <limits>
#include <utility>

#include "base/half.h"
#include "base/rng.h"
#include "kernels/nvfp4/codec.h"
#include "kernels/nvfp4/kernels.h"

namespace longspur::kernels::nvfp4 {

namespace {

struct Simd {
  static constexpr int kLanes = 8;
  static constexpr bool kFma = true;
  using F = float __attribute__((vector_size(32)));
  using I = int32_t __attribute__((vector_size(32)));
  static F min(F a, F b) { return _mm256_min_ps(a, b); }
  static F max(F a, F b) { return _mm256_max_ps(a, b); }
  static F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  static F fnma(F a, F b, F c) { return _mm256_fnmadd_ps(a, b, c); }

  static void widen_halves(const uint16_t* from, float* to) {
    for (int i = 0; i < kBlock; i += 8) {
      const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i));
      _mm256_storeu_ps(to + i, _mm256_cvtph_ps(halves));
    }
  }
  static void narrow_halves(const float* from, uint16_t* to) {
    for (int i = 0; i < kBlock; i += 8) {
      _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i),
                       _mm256_cvtps_ph(_mm256_loadu_ps(from + i), _MM_FROUND_TO_NEAREST_INT));
    }
  }
  static void narrow_to_bf16(const float* from, uint16_t* to) {
    const __m256i packed = _mm256_packus_epi32(bf16_bits(from), bf16_bits(from + 8));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm256_permute4x64_epi64(packed, 0xd8));
  }
  static __m256i bf16_bits(const float* from) {
    const __m256 x = _mm256_loadu_ps(from);
    const __m256i bits = _mm256_castps_si256(x);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded =
        _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    return _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
  }
  static void decode(const uint8_t* codes, float scale, float multiplier, float* out) {
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(codes));
    const __m128i nibbles = _mm_unpacklo_epi8(bytes, _mm_srli_epi16(bytes, 4));
    decode8(nibbles, scale, multiplier, out);
    decode8(_mm_srli_si128(nibbles, 8), scale, multiplier, out + 8);
  }
  // Eight codes in the low nibbles of the first eight bytes; what is above them is ignored.
  static void decode8(__m128i nibbles, float scale, float multiplier, float* out) {
    const __m256 magnitudes = _mm256_setr_ps(0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f);
    const __m256i index = _mm256_cvtepu8_epi32(nibbles);
    const __m256i code = _mm256_and_si256(index, _mm256_set1_epi32(15));
    const __m256i sign = _mm256_slli_epi32(_mm256_cmpgt_epi32(code, _mm256_set1_epi32(8)), 31);
    const __m256 value =
        _mm256_xor_ps(_mm256_permutevar8x32_ps(magnitudes, index), _mm256_castsi256_ps(sign));
    _mm256_storeu_ps(out, _mm256_mul_ps(_mm256_mul_ps(value, _mm256_set1_ps(scale)),
                                        _mm256_set1_ps(multiplier)));
  }
};

#include "kernels/nvfp4/cpu/blocks-inl.h"
// clang-format keeps this order: each body needs the one before.
#include "kernels/nvfp4/cpu/quantize-inl.h"
//
#include "kernels/nvfp4/cpu/dequantize-inl.h"

constexpr KernelTable kTable = {"avx2", quantize_rows, dequantize_rows, largest};

}  // namespace

const KernelTable* table_avx2() { return &kTable; }

}  // namespace longspur::kernels::nvfp4
