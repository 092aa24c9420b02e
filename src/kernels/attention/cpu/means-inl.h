// Mean correction of a mask: what its skipped blocks are worth as one key each, compiled once an
// instruction set, after attend-inl.h.
//
// A block of n keys whose scores differ little weighs about n exp(q . mean key) and adds that much
// of its mean value. The means of 64 blocks are a page like any other, so they meet the rows of a
// tile by the same products.

// Adds the sums over the 64 tokens of a page to keys and values, [padded_dim] each.
template <class Word>
inline void add_page(const Tile& tile, int64_t block, float* keys, float* values, std::byte* own) {
  constexpr int kPack = PageType<Word>::kPack;
  const int64_t d = tile.head_dim, dp = padded_dim(d);
  const std::byte* page = open_page<Word>(tile, block, own);
  const auto* key_words = reinterpret_cast<const Word*>(page);
  Word ones[kPageTokens / kPack];
  for (Word& word : ones) word = PageType<Word>::kAllOnes;
  for (int64_t i = 0; i < d; ++i) {
    const auto one = Simd::load_a(&PageType<Word>::kOnes[i % kPack]);
    typename Simd::F sum = Simd::zero();
    for (int64_t t = 0; t < kPageTokens; t += Simd::kWidth)
      sum = Simd::dot(sum, one, Simd::load_b(key_words + i / kPack * kPageTokens + t));
    keys[i] += Simd::reduce_add(sum);
  }
  product<Word>(1, ones, kPageTokens / kPack,
                reinterpret_cast<const Word*>(page + value_offset(PageType<Word>::kType, d)), dp,
                kPageTokens / kPack, values, dp, true);
}

template <class Word>
void block_means(const Tile& tile, const MeansUnit& unit, const TileScratch& scratch) {
  const int64_t d = tile.head_dim, dp = padded_dim(d);
  float *keys = scratch.o, *values = scratch.o + dp;
  const float factor = 1.0f / float(unit.pages_a_block * kPageTokens);
  for (int64_t block = unit.first; block < unit.end; ++block) {
    std::memset(scratch.o, 0, size_t(2 * dp) * sizeof(float));
    const int64_t pages = block < unit.blocks ? unit.pages_a_block : 0;
    for (int64_t i = 0; i < pages; ++i)
      add_page<Word>(tile, block * pages + i, keys, values, scratch.page);
    for (int64_t i = 0; i < 2 * dp; ++i) scratch.o[i] *= factor;
    store_key_value(reinterpret_cast<Word*>(unit.page), block % kPageTokens, d, keys, values);
  }
}

template <class Word>
void attend_means(const Tile& tile, const TileScratch& scratch, RowState* states) {
  constexpr int kPack = PageType<Word>::kPack;
  const int64_t rows = tile.tokens * tile.group, d = tile.head_dim, dp = padded_dim(d);
  const int64_t q_words = d / kPack, p_words = kPageTokens / kPack;
  auto* p = static_cast<Word*>(scratch.p);
  for (int64_t first = tile.mean_begin / kPageTokens * kPageTokens; first < tile.mean_end;
       first += kPageTokens) {
    bool counts[kPageTokens], any = false;
    for (int64_t j = 0; j < kPageTokens; ++j) {
      const int64_t block = first + j;
      counts[j] =
          block >= tile.mean_begin && block < tile.mean_end && !has_block(tile.listed, block);
      any |= counts[j];
    }
    if (!any) continue;
    const std::byte* page = tile.means + first / kPageTokens * tile.mean_page_bytes;
    product<Word>(rows, static_cast<const Word*>(scratch.q), q_words,
                  reinterpret_cast<const Word*>(page), kPageTokens, q_words, scratch.s, kPageTokens,
                  false);
    for (int64_t r = 0; r < rows; ++r) {
      float* s = scratch.s + r * kPageTokens;
      for (int64_t j = 0; j < kPageTokens; ++j)
        s[j] = counts[j] ? s[j] + tile.mean_offset : -INFINITY;
      softmax_row<Word, true>(s, 1.0f, states[r], scratch.o + r * dp, dp, p + r * p_words);
    }
    product<Word>(rows, p, p_words,
                  reinterpret_cast<const Word*>(page + value_offset(PageType<Word>::kType, d)), dp,
                  p_words, scratch.o, dp, true);
  }
}
