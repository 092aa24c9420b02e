// Simd for AVX-512, with or without bf16 dot products (LONGSPUR_BF16_DOT). Included inside an
// anonymous namespace.
struct Simd {
  static constexpr int kWidth = 16;
  using F = __m512;
#ifdef LONGSPUR_BF16_DOT
  static constexpr int kRows = 6, kVectors = 4;  // 24 sums, 4 columns: 28 of 32 registers
  struct Pairs {
    __m512bh words;
  };
  struct RowPair {
    __m512bh words;
  };
  static Pairs load_b(const uint32_t* p) { return {(__m512bh)_mm512_loadu_si512(p)}; }
  static RowPair load_a(const uint32_t* p) { return {(__m512bh)_mm512_set1_epi32(int(*p))}; }
  static F dot(F c, RowPair a, Pairs b) { return _mm512_dpbf16_ps(c, b.words, a.words); }
#else
  static constexpr int kRows = 6, kVectors = 2;  // 12 sums, 4 halves of columns
  struct Pairs {
    F even, odd;
  };
  struct RowPair {
    F even, odd;
  };
  static Pairs split(__m512i words) {
    return {_mm512_castsi512_ps(_mm512_slli_epi32(words, 16)),
            _mm512_castsi512_ps(_mm512_and_si512(words, _mm512_set1_epi32(int(0xffff0000u))))};
  }
  static Pairs load_b(const uint32_t* p) { return split(_mm512_loadu_si512(p)); }
  static RowPair load_a(const uint32_t* p) {
    const Pairs both = split(_mm512_set1_epi32(int(*p)));
    return {both.even, both.odd};
  }
  static F dot(F c, RowPair a, Pairs b) {
    return _mm512_fmadd_ps(a.odd, b.odd, _mm512_fmadd_ps(a.even, b.even, c));
  }
#endif
  static F load_b(const float* p) { return _mm512_loadu_ps(p); }
  static F load_a(const float* p) { return _mm512_set1_ps(*p); }
  static F dot(F c, F a, F b) { return _mm512_fmadd_ps(a, b, c); }

  // kWidth bytes of two E2M1 codes to words of two bf16, the low nibble's value in the low half;
  // the products are exact in bf16.
  static void decode_pairs(const uint8_t* codes, F low_scale, F high_scale, uint32_t* out) {
    const F values = _mm512_setr_ps(0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f, 0.0f, -0.5f,
                                    -1.0f, -1.5f, -2.0f, -3.0f, -4.0f, -6.0f);
    const __m512i index =
        _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes)));
    // the permutation reads four bits of each index
    const F low = _mm512_mul_ps(_mm512_permutexvar_ps(index, values), low_scale);
    const F high =
        _mm512_mul_ps(_mm512_permutexvar_ps(_mm512_srli_epi32(index, 4), values), high_scale);
    const __m512i words = _mm512_mask_mov_epi16(_mm512_srli_epi32(_mm512_castps_si512(low), 16),
                                                0xaaaaaaaau, _mm512_castps_si512(high));
    _mm512_storeu_si512(out, words);
  }
  // The same with something added to the low and to the high numbers, which rounds them (halves
  // away from zero).
  static void decode_pairs(const uint8_t* codes, F scale, F add_low, F add_high, uint32_t* out) {
    const F values = _mm512_setr_ps(0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f, 0.0f, -0.5f,
                                    -1.0f, -1.5f, -2.0f, -3.0f, -4.0f, -6.0f);
    const __m512i half = _mm512_set1_epi32(0x8000);
    const __m512i index =
        _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes)));
    const F low = _mm512_fmadd_ps(_mm512_permutexvar_ps(index, values), scale, add_low);
    const F high = _mm512_fmadd_ps(_mm512_permutexvar_ps(_mm512_srli_epi32(index, 4), values),
                                   scale, add_high);
    const __m512i low_bits = _mm512_add_epi32(_mm512_castps_si512(low), half);
    const __m512i high_bits = _mm512_add_epi32(_mm512_castps_si512(high), half);
    _mm512_storeu_si512(
        out, _mm512_mask_mov_epi16(_mm512_srli_epi32(low_bits, 16), 0xaaaaaaaau, high_bits));
  }

  static F zero() { return _mm512_setzero_ps(); }
  static F set1(float x) { return _mm512_set1_ps(x); }
  static F load(const float* p) { return _mm512_loadu_ps(p); }
  static void store(float* p, F v) { _mm512_storeu_ps(p, v); }
  static F add(F a, F b) { return _mm512_add_ps(a, b); }
  static F sub(F a, F b) { return _mm512_sub_ps(a, b); }
  static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F max(F a, F b) { return _mm512_max_ps(a, b); }
  static bool any_above(F a, F b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ) != 0; }
  static float reduce_max(F a) { return _mm512_reduce_max_ps(a); }
  static float reduce_add(F a) { return _mm512_reduce_add_ps(a); }

  // 2^x for x <= 0: 2^n 2^f with f in [-1/2, 1/2], minimax polynomial of degree 6 (2e-7 relative);
  // -inf gives 0.
  static F exp2(F x) {
    x = _mm512_max_ps(_mm512_set1_ps(-200.0f), x);  // in this order NaN stays
    const F n = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const F f = _mm512_sub_ps(x, n);
    F y = _mm512_set1_ps(1.535336188319500e-4f);
    y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(1.339887440266574e-3f));
    y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(9.618437357674640e-3f));
    y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(5.550332471162809e-2f));
    y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(2.402264791363012e-1f));
    y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(6.931472028550421e-1f));
    y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(y, n);
  }

  static __mmask16 first(int64_t n) {
    return n < 16 ? __mmask16((1u << n) - 1u) : __mmask16(0xffff);
  }
  static void load_halves(const uint16_t* from, int64_t n, float* to) {
    for (int64_t i = 0; i < n; i += 16) {
      const __mmask16 lanes = first(n - i);
      _mm512_mask_storeu_ps(to + i, lanes,
                            _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(lanes, from + i)));
    }
  }
  static void store_halves(const float* from, int64_t n, uint16_t* to) {
    for (int64_t i = 0; i < n; i += 16) {
      const __mmask16 lanes = first(n - i);
      const __m512 x = _mm512_maskz_loadu_ps(lanes, from + i);
      _mm256_mask_storeu_epi16(to + i, lanes, _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
    }
  }

  static F store_p(float* p, int i, F x) {
    store(p + i, x);
    return x;
  }
  // Rounds to nearest even by integer arithmetic (weights are finite and not negative).
  static F store_p(uint32_t* p, int i, F x) {
    __m512i bits = _mm512_castps_si512(x);
    const __m512i tie = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    bits = _mm512_add_epi32(bits, _mm512_add_epi32(tie, _mm512_set1_epi32(0x7fff)));
    const __m512i high = _mm512_srli_epi32(bits, 16);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(reinterpret_cast<uint16_t*>(p) + i),
                        _mm512_cvtepi32_epi16(high));
    return _mm512_castsi512_ps(_mm512_slli_epi32(high, 16));
  }
};
