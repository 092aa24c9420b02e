// The inner attention step on a tile, compiled once an instruction set: scores of a block of 64
// keys, mask, online softmax, weighted values. The including file defines, inside an anonymous
// namespace, a struct Simd (see portable.cpp for the smallest) and then includes this.
//
// All products are one micro-kernel, C[M, N] += A[M, K] B[K, N], with A broadcast and B streamed:
// scores S = Q K^T with K stored transposed, and O += P V. With 32-bit words of two bf16, two
// neighbours along K share a word in A and in B, so one step is a pair-wise dot product.
//
// Softmax: base 2 (log2 e is in the factor of the scores), running maximum, fp32. P is rounded to
// bf16 where words are bf16 pairs, and the row sum is taken over the rounded values, so that
// weights sum to one exactly. A NaN among a row's scores makes the row NaN.

template <class Word>
struct PageType;
template <>
struct PageType<uint32_t> {  // two bf16
  static constexpr int kPack = 2;
  static constexpr KvType kType = KvType::kBF16;
  static constexpr uint32_t kOnes[] = {0x00003f80u, 0x3f800000u};  // 1 in one half, 0 in the other
  static constexpr uint32_t kAllOnes = 0x3f803f80u;
};
template <>
struct PageType<float> {
  static constexpr int kPack = 1;
  static constexpr KvType kType = KvType::kF32;
  static constexpr float kOnes[] = {1.0f};
  static constexpr float kAllOnes = 1.0f;
};

// kRows x (kVectors * kWidth) of C. a: [rows, lda] words, or transposed, [k, lda]; b: [k, ldb]
// words. ahead: the B of a product to come, whose lines are fetched into L2 as this one proceeds
// (two of them would fill L1); or null.
template <class Word, bool kTransposed, int kRows, int kVectors>
inline void product_tile(const Word* a,
                         int64_t lda,
                         const Word* b,
                         int64_t ldb,
                         int64_t k,
                         float* c,
                         int64_t ldc,
                         bool accumulate,
                         const Word* ahead) {
  typename Simd::F sum[kRows][kVectors];
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kVectors; ++v) {
      sum[r][v] = accumulate ? Simd::load(c + r * ldc + v * Simd::kWidth) : Simd::zero();
    }
  }
  for (int64_t i = 0; i < k; ++i) {
    decltype(Simd::load_b(b)) columns[kVectors];
    for (int v = 0; v < kVectors; ++v) columns[v] = Simd::load_b(b + v * Simd::kWidth);
    if (ahead != nullptr) {
      for (int v = 0; v < kVectors; ++v)
        __builtin_prefetch(ahead + i * ldb + v * Simd::kWidth, 0, 2);
    }
    for (int r = 0; r < kRows; ++r) {
      const auto row = Simd::load_a(kTransposed ? a + r : a + r * lda);
      for (int v = 0; v < kVectors; ++v) sum[r][v] = Simd::dot(sum[r][v], row, columns[v]);
    }
    a += kTransposed ? lda : 1;
    b += ldb;
  }
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kVectors; ++v) Simd::store(c + r * ldc + v * Simd::kWidth, sum[r][v]);
  }
}

template <class Word, bool kTransposed, int kVectors>
inline void product_rows(int64_t rows,
                         const Word* a,
                         int64_t lda,
                         const Word* b,
                         int64_t ldb,
                         int64_t k,
                         float* c,
                         int64_t ldc,
                         bool accumulate,
                         const Word* ahead) {
  static_assert(Simd::kRows <= 6, "what is left over is one step of three rows and single ones");
  const auto advance = [&](int64_t done) {
    a += kTransposed ? done : done * lda;
    c += done * ldc;
    rows -= done;
    ahead = nullptr;
  };
  while (rows >= Simd::kRows) {
    product_tile<Word, kTransposed, Simd::kRows, kVectors>(a, lda, b, ldb, k, c, ldc, accumulate,
                                                           ahead);
    advance(Simd::kRows);
  }
  if (rows >= 3) {
    product_tile<Word, kTransposed, 3, kVectors>(a, lda, b, ldb, k, c, ldc, accumulate, ahead);
    advance(3);
  }
  while (rows > 0) {
    product_tile<Word, kTransposed, 1, kVectors>(a, lda, b, ldb, k, c, ldc, accumulate, ahead);
    advance(1);
  }
}

// n: a multiple of the vector width, and the stride of B.
template <class Word, bool kTransposed = false>
inline void product(int64_t rows,
                    const Word* a,
                    int64_t lda,
                    const Word* b,
                    int64_t n,
                    int64_t k,
                    float* c,
                    int64_t ldc,
                    bool accumulate,
                    const Word* ahead = nullptr) {
  const auto ahead_at = [&](int64_t at) { return ahead == nullptr ? nullptr : ahead + at; };
  constexpr int64_t kStep = Simd::kVectors * Simd::kWidth;
  int64_t column = 0;
  for (; column + kStep <= n; column += kStep) {
    product_rows<Word, kTransposed, Simd::kVectors>(rows, a, lda, b + column, n, k, c + column, ldc,
                                                    accumulate, ahead_at(column));
  }
  for (; column < n; column += Simd::kWidth) {
    product_rows<Word, kTransposed, 1>(rows, a, lda, b + column, n, k, c + column, ldc, accumulate,
                                       ahead_at(column));
  }
}

inline uint32_t bf16_bits(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return (bits >> 16) | 0x40u;
  return (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
}

// Running softmax of one row.
struct RowState {
  float m, l;
};

// Keys outside the row's view get -inf. Whatever an unused slot of the page held is overwritten
// here.
inline void mask_row(float* s, int64_t block, int64_t position, int64_t window) {
  const int64_t first = block * kPageTokens;
  const int64_t past = position + 1 - first;  // visible columns end here
  for (int64_t i = past < 0 ? 0 : past; i < kPageTokens; ++i) s[i] = -INFINITY;
  if (window > 0) {
    const int64_t begin = position + 1 - window - first;
    for (int64_t i = 0; i < begin && i < kPageTokens; ++i) s[i] = -INFINITY;
  }
}

// One block of online softmax on one row of scores, times `factor` in base-2 units: P to p, the
// running state, O rescaled.
template <class Word, bool kSumRounded>
inline void softmax_row(
    const float* s, float factor, RowState& state, float* o, int64_t dp, void* p) {
  constexpr int kW = Simd::kWidth;
  const typename Simd::F factor_v = Simd::set1(factor);
  typename Simd::F best = Simd::mul(Simd::load(s), factor_v);
  for (int i = kW; i < kPageTokens; i += kW)
    best = Simd::max(best, Simd::mul(Simd::load(s + i), factor_v));
  const float block_max = Simd::reduce_max(best);
  const float m = block_max > state.m ? block_max : state.m;
  if (block_max == -INFINITY && m == -INFINITY) {  // nothing visible yet
    std::memset(p, 0, kPageTokens * sizeof(Word) / PageType<Word>::kPack);
    return;
  }
  if (m > state.m) {
    const float keep = state.m == -INFINITY ? 0.0f : ::exp2f(state.m - m);
    const typename Simd::F keep_v = Simd::set1(keep);
    for (int64_t i = 0; i < dp; i += kW) Simd::store(o + i, Simd::mul(Simd::load(o + i), keep_v));
    state.l *= keep;
    state.m = m;
  }
  const typename Simd::F m_v = Simd::set1(m);
  typename Simd::F sum = Simd::zero();
  for (int i = 0; i < kPageTokens; i += kW) {
    const typename Simd::F x = Simd::exp2(Simd::sub(Simd::mul(Simd::load(s + i), factor_v), m_v));
    const typename Simd::F rounded = Simd::store_p(static_cast<Word*>(p), i, x);
    sum = Simd::add(sum, kSumRounded ? rounded : x);
  }
  state.l += Simd::reduce_add(sum);
}
