// Bodies of score_tile.h; compiled once an instruction set, after varlen-inl.h and
// nvfp4_page-inl.h.

inline const std::byte* open_block(const KeyBlocks& keys, int64_t block) {
  if (keys.nvfp4 != nullptr) {
    const bool plain = block == 0 || block == keys.nvfp4->partial_block;
    return plain ? open_bf16(*keys.nvfp4, block, keys.opened)
                 : open_nvfp4(*keys.nvfp4, block, keys.opened);
  }
  const int64_t at = keys.pages == nullptr ? block : keys.pages[block];
  return keys.base + at * keys.bytes;
}
template <class Word>
inline const Word* open_keys(const KeyBlocks& keys, int64_t block) {
  return reinterpret_cast<const Word*>(open_block(keys, block));
}

// Squared norms of the columns of a block.
inline void column_norms(const float* keys, int64_t words, float* __restrict norms) {
  for (int64_t j = 0; j < kBlockKeys; ++j) norms[j] = 0.0f;
  for (int64_t i = 0; i < words; ++i, keys += kBlockKeys) {
    for (int64_t j = 0; j < kBlockKeys; ++j) norms[j] += keys[j] * keys[j];
  }
}
inline void column_norms(const uint32_t* keys, int64_t words, float* __restrict norms) {
  for (int64_t j = 0; j < kBlockKeys; ++j) norms[j] = 0.0f;
  for (int64_t i = 0; i < words; ++i, keys += kBlockKeys) {
    uint32_t bits[2][kBlockKeys];
    float values[2][kBlockKeys];
    for (int64_t j = 0; j < kBlockKeys; ++j) {
      bits[0][j] = keys[j] << 16;
      bits[1][j] = keys[j] & 0xffff0000u;
    }
    std::memcpy(values, bits, sizeof(values));
    for (int64_t j = 0; j < kBlockKeys; ++j)
      norms[j] += values[0][j] * values[0][j] + values[1][j] * values[1][j];
  }
}

// One row of products against one block: raises the running maximum, sums the exponentials; with
// kStore they also replace the products.
template <bool kStore>
inline float exponentials(float* s, float factor, float& top) {
  constexpr int kW = Simd::kWidth, kN = int(kBlockKeys) / kW;
  typename Simd::F x[kN];
  const typename Simd::F factor_v = Simd::set1(factor);
  for (int i = 0; i < kN; ++i) x[i] = Simd::mul(Simd::load(s + i * kW), factor_v);
  typename Simd::F best = x[0];
  for (int i = 1; i < kN; ++i) best = Simd::max(best, x[i]);
  if (Simd::any_above(best, Simd::set1(top))) top = Simd::reduce_max(best);
  const typename Simd::F top_v = Simd::set1(top);
  typename Simd::F sum = Simd::zero();
  for (int i = 0; i < kN; ++i) {
    x[i] = Simd::exp2(Simd::sub(x[i], top_v));
    if (kStore) Simd::store(s + i * kW, x[i]);
    sum = Simd::add(sum, x[i]);
  }
  return kStore ? 0.0f : Simd::reduce_add(sum);
}

inline void score_row(const ScoreTile& tile, int64_t r, int64_t block, float factor, float& top) {
  float* s = tile.s + r * kBlockKeys;
  const int64_t segments = kBlockKeys / tile.segment, at = r * tile.stride + block * segments;
  if (segments == 1) {
    tile.sum[at] = exponentials<false>(s, factor, top);
    tile.top[at] = top;
    return;
  }
  exponentials<true>(s, factor, top);
  for (int64_t g = 0; g < segments; ++g) tile.top[at + g] = top;
  if (tile.segment == 1) {
    std::memcpy(tile.sum + at, s, kBlockKeys * sizeof(float));
    return;
  }
  for (int64_t g = 0; g < segments; ++g) {
    float sum = 0.0f;
    for (int64_t j = g * tile.segment; j < (g + 1) * tile.segment; ++j) sum += s[j];
    tile.sum[at + g] = sum;
  }
}

template <class Word>
void score_blocks(const ScoreTile& tile) {
  float top[kMaxRows], norms[kBlockKeys];
  // Finite, so that what a row does not see weighs 0 before anything is seen.
  for (int64_t r = 0; r < tile.count; ++r) top[r] = -3.0e38f;
  for (int64_t block = 0; block < tile.end_block; ++block) {
    const Word* keys = open_keys<Word>(tile.keys, block);
    const bool ahead = tile.keys.nvfp4 == nullptr && block + 1 < tile.end_block;
    product<Word>(tile.count, static_cast<const Word*>(tile.rows), tile.words, keys, kBlockKeys,
                  tile.words, tile.s, kBlockKeys, false,
                  ahead ? open_keys<Word>(tile.keys, block + 1) : nullptr);
    if (tile.bias != nullptr) column_norms(keys, tile.words, norms);
    for (int64_t r = 0; r < tile.count; ++r) {
      float* s = tile.s + r * kBlockKeys;
      const bool biased = tile.bias != nullptr && tile.bias[r] != 0.0f;
      if (biased) {
        for (int64_t j = 0; j < kBlockKeys; ++j)
          s[j] = s[j] * tile.factor + tile.bias[r] * norms[j];
      }
      const int64_t seen = tile.visible[r] - block * kBlockKeys;
      for (int64_t j = seen < 0 ? 0 : seen; j < kBlockKeys; ++j) s[j] = -INFINITY;
      score_row(tile, r, block, biased ? 1.0f : tile.factor, top[r]);
    }
  }
}

inline RowMass score_shares(float* top, float* sum, int64_t n, float* share) {
  const float last = top[n - 1];  // the largest: tops do not fall
  for (int64_t i = n; i % Simd::kWidth != 0; ++i) {
    top[i] = last;
    sum[i] = 0.0f;
  }
  const typename Simd::F last_v = Simd::set1(last);
  typename Simd::F total_v = Simd::zero();
  for (int64_t i = 0; i < n; i += Simd::kWidth) {
    const typename Simd::F part =
        Simd::mul(Simd::load(sum + i), Simd::exp2(Simd::sub(Simd::load(top + i), last_v)));
    Simd::store(share + i, part);
    total_v = Simd::add(total_v, part);
  }
  const float total = Simd::reduce_add(total_v);
  const typename Simd::F inverse = Simd::set1(1.0f / total);
  for (int64_t i = 0; i < n; i += Simd::kWidth)
    Simd::store(share + i, Simd::mul(Simd::load(share + i), inverse));
  return {last, total};
}

void load_score_rows(const ConstRows& rows,
                     DType type,
                     int64_t token,
                     int64_t head,
                     int64_t count,
                     int64_t d,
                     float* to) {
  for (int64_t j = 0; j < count; ++j)
    load_row(rows, type, token + j, head, d, to + j * padded_dim(d));
}

constexpr ScoreTable kScores = {score_blocks<uint32_t>, score_blocks<float>, score_shares,
                                open_block, load_score_rows};
