// AVX-512 (F, BW, VL, DQ). Compiled with its own flags; nothing here may be shared with other units
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
  static constexpr int kLanes = 16;
  static constexpr bool kFma = true;
  using F = float __attribute__((vector_size(64)));
  using I = int32_t __attribute__((vector_size(64)));
  static F min(F a, F b) { return _mm512_min_ps(a, b); }
  static F max(F a, F b) { return _mm512_max_ps(a, b); }
  static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static F fnma(F a, F b, F c) { return _mm512_fnmadd_ps(a, b, c); }

  static void widen_halves(const uint16_t* from, float* to) {
    const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    _mm512_storeu_ps(to, _mm512_cvtph_ps(halves));
  }
  static void narrow_halves(const float* from, uint16_t* to) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to),
                        _mm512_cvtps_ph(_mm512_loadu_ps(from), _MM_FROUND_TO_NEAREST_INT));
  }
  static void narrow_to_bf16(const float* from, uint16_t* to) {
    const __m512 x = _mm512_loadu_ps(from);
    const __m512i bits = _mm512_castps_si512(x);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i high = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    high = _mm512_mask_or_epi32(high, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), bits,
                                _mm512_set1_epi32(0x400000));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to),
                        _mm512_cvtepi32_epi16(_mm512_srli_epi32(high, 16)));
  }
  static void decode(const uint8_t* codes, float scale, float multiplier, float* out) {
    const __m512 values = _mm512_setr_ps(0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f, 0.0f,
                                         -0.5f, -1.0f, -1.5f, -2.0f, -3.0f, -4.0f, -6.0f);
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(codes));
    // The permutation reads four bits of each index: the high nibble left in place does no harm.
    const __m128i nibbles = _mm_unpacklo_epi8(bytes, _mm_srli_epi16(bytes, 4));
    const __m512 value = _mm512_permutexvar_ps(_mm512_cvtepu8_epi32(nibbles), values);
    _mm512_storeu_ps(out, _mm512_mul_ps(_mm512_mul_ps(value, _mm512_set1_ps(scale)),
                                        _mm512_set1_ps(multiplier)));
  }
};

#include "kernels/nvfp4/cpu/blocks-inl.h"
// clang-format keeps this order: each body needs the one before.
#include "kernels/nvfp4/cpu/quantize-inl.h"
//
#include "kernels/nvfp4/cpu/dequantize-inl.h"

constexpr KernelTable kTable = {"avx512", quantize_rows, dequantize_rows, largest};

}  // namespace

const KernelTable* table_avx512() { return &kTable; }

}  // namespace longspur::kernels::nvfp4
