// Bodies of the attention over packed sequences, forward; compiled once an instruction set, after
// step-inl.h. Operands are brought into compact blocks first: keys transposed, rows padded with
// zeros to a whole number of vectors, 16-bit types widened (or kept as pairs of bf16).

// --- rows of any type to fp32 and back ---

inline void load_row(const ConstRows& rows,
                     DType type,
                     int64_t token,
                     int64_t head,
                     int64_t d,
                     float* __restrict to) {
  const int64_t at = token * rows.token_stride + head * rows.head_stride;
  if (type == DType::kF32) {
    std::memcpy(to, static_cast<const float*>(rows.data) + at, size_t(d) * sizeof(float));
  } else if (type == DType::kBF16) {
    const auto* from = static_cast<const uint16_t*>(rows.data) + at;
    for (int64_t i = 0; i < d; ++i) {
      const uint32_t bits = uint32_t(from[i]) << 16;
      std::memcpy(to + i, &bits, 4);
    }
  } else {
    Simd::load_halves(static_cast<const uint16_t*>(rows.data) + at, d, to);
  }
}

// May overwrite `from`.
inline void store_row(const Rows& rows,
                      DType type,
                      int64_t token,
                      int64_t head,
                      int64_t d,
                      float factor,
                      float* __restrict from) {
  const int64_t at = token * rows.token_stride + head * rows.head_stride;
  for (int64_t i = 0; i < d; ++i) from[i] *= factor;
  if (type == DType::kF32) {
    std::memcpy(static_cast<float*>(rows.data) + at, from, size_t(d) * sizeof(float));
  } else if (type == DType::kBF16) {
    auto* to = static_cast<uint16_t*>(rows.data) + at;
    for (int64_t i = 0; i < d; ++i) to[i] = uint16_t(bf16_bits(from[i]));
  } else {
    Simd::store_halves(from, d, static_cast<uint16_t*>(rows.data) + at);
  }
}

// x may be null when there is nothing to do.
inline void zero_floats(float* x, int64_t n) {
  if (n > 0) std::memset(x, 0, size_t(n) * sizeof(float));
}

// `count` rows of one head from `token` on, padded with zeros to [padded_count, padded_dim].
inline void load_rows(const ConstRows& rows,
                      const VarlenShape& shape,
                      int64_t token,
                      int64_t head,
                      int64_t count,
                      int64_t padded_count,
                      float* to) {
  const int64_t d = shape.head_dim, dp = padded_dim(d);
  for (int64_t j = 0; j < count; ++j) {
    load_row(rows, shape.dtype, token + j, head, d, to + j * dp);
    zero_floats(to + j * dp + d, dp - d);
  }
  zero_floats(to + count * dp, (padded_count - count) * dp);
}

// [kBlockKeys, padded_dim] to [D, kBlockKeys].
inline void transpose_block(const float* __restrict from, int64_t d, float* __restrict to) {
  const int64_t dp = padded_dim(d);
  for (int64_t i = 0; i < d; ++i) {
    for (int64_t j = 0; j < kBlockKeys; ++j) to[i * kBlockKeys + j] = from[j * dp + i];
  }
}

// --- a block of keys and values, and the queries, in words ---

inline int64_t visible_keys(bool causal, int64_t first_visible, int64_t token, int64_t keys) {
  if (!causal) return keys;
  const int64_t visible = first_visible + token;
  return visible < 0 ? 0 : visible < keys ? visible : keys;
}

// The sign of scale goes into q, exactly, so that the factor of the scores is positive and keeps
// the order of -inf.
inline float sign_of(double scale) { return scale > 0.0 ? 1.0f : scale < 0.0 ? -1.0f : 0.0f; }

inline void pack_row(const VarlenForwardTile& tile, int64_t token, int64_t head, float* to) {
  const VarlenShape& shape = tile.args->shape;
  load_row(tile.args->q, shape.dtype, token, head, shape.head_dim, to);
  const float sign = sign_of(shape.scale);
  if (sign == 1.0f) return;
  for (int64_t i = 0; i < shape.head_dim; ++i) to[i] *= sign;
}
inline void pack_row(const VarlenForwardTile& tile, int64_t token, int64_t head, uint32_t* to) {
  const VarlenShape& shape = tile.args->shape;
  const ConstRows& q = tile.args->q;
  const int64_t d = shape.head_dim;
  const float sign = sign_of(shape.scale);
  to[(d - 1) / 2] = 0;  // the second half of an odd last word
  std::memcpy(to,
              static_cast<const uint16_t*>(q.data) + token * q.token_stride + head * q.head_stride,
              size_t(d) * 2);
  if (sign == 1.0f) return;
  for (int64_t i = 0; i < (d + 1) / 2; ++i) to[i] = sign < 0.0f ? to[i] ^ 0x80008000u : 0u;
}

inline void pack_block(const VarlenForwardTile& tile,
                       int64_t first,
                       int64_t count,
                       const VarlenForwardScratch& scratch,
                       float* keys) {
  const VarlenForwardArgs& args = *tile.args;
  auto* values = static_cast<float*>(scratch.values);  // the keys' place until they are transposed
  load_rows(args.k, args.shape, tile.k_begin + first, tile.kv_head, count, kBlockKeys, values);
  transpose_block(values, args.shape.head_dim, keys);
  load_rows(args.v, args.shape, tile.k_begin + first, tile.kv_head, count, kBlockKeys, values);
}
inline void pack_block(const VarlenForwardTile& tile,
                       int64_t first,
                       int64_t count,
                       const VarlenForwardScratch& scratch,
                       uint32_t* keys) {
  const int64_t d = tile.args->shape.head_dim, dp = padded_dim(d), words = (d + 1) / 2;
  const auto row = [&](const ConstRows& rows, int64_t j) {
    const int64_t at =
        (tile.k_begin + first + j) * rows.token_stride + tile.kv_head * rows.head_stride;
    return static_cast<const uint16_t*>(rows.data) + at;
  };
  auto* copy = reinterpret_cast<uint32_t*>(scratch.row);
  copy[words - 1] = 0;
  for (int64_t j = 0; j < kBlockKeys; ++j) {
    if (j < count) std::memcpy(copy, row(tile.args->k, j), size_t(d) * 2);
    if (j == count) std::memset(copy, 0, size_t(words) * 4);
    for (int64_t i = 0; i < words; ++i) keys[i * kBlockKeys + j] = copy[i];
  }
  auto* values = static_cast<uint32_t*>(scratch.values);
  std::memset(values, 0, size_t(kBlockKeys / 2 * dp) * 4);
  for (int64_t j = 0; j < count; j += 2) {
    uint32_t* __restrict to = values + j / 2 * dp;
    const uint16_t* __restrict even = row(tile.args->v, j);
    for (int64_t i = 0; i < d; ++i) to[i] = even[i];
    if (j + 1 == count) break;
    const uint16_t* __restrict odd = row(tile.args->v, j + 1);
    for (int64_t i = 0; i < d; ++i) to[i] |= uint32_t(odd[i]) << 16;
  }
}

// --- forward ---

// Rows [first_row, first_row + rows) of the tile meet the packed block of keys that begins at
// first_key.
template <class Word>
inline void varlen_block(const VarlenForwardTile& tile,
                         const VarlenForwardScratch& scratch,
                         int64_t first_row,
                         int64_t rows,
                         int64_t first_key) {
  constexpr int kPack = PageType<Word>::kPack;
  const VarlenShape& shape = tile.args->shape;
  const int64_t d = shape.head_dim, dp = padded_dim(d);
  const int64_t q_words = (d + kPack - 1) / kPack, p_words = kBlockKeys / kPack;
  const auto visible = [&](int64_t row) {
    return visible_keys(shape.causal, tile.first_visible, row / tile.heads, tile.keys);
  };
  if (visible(first_row + rows - 1) <= first_key) return;
  const auto* q = static_cast<const Word*>(scratch.q) + first_row * q_words;
  auto* p = static_cast<Word*>(scratch.p);
  float* o = scratch.o + first_row * dp;
  auto* states = reinterpret_cast<RowState*>(scratch.state) + first_row;
  product<Word>(rows, q, q_words, static_cast<const Word*>(scratch.keys), kBlockKeys, q_words,
                scratch.s, kBlockKeys, false);
  const float factor = shape.scale == 0.0 ? 1.0f : ::fabsf(float(shape.scale)) * kLog2E;
  for (int64_t r = 0; r < rows; ++r) {
    float* s = scratch.s + r * kBlockKeys;
    const int64_t seen = visible(first_row + r) - first_key;
    for (int64_t j = seen < 0 ? 0 : seen; j < kBlockKeys; ++j) s[j] = -INFINITY;
    softmax_row<Word, false>(s, factor, states[r], o + r * dp, dp, p + r * p_words);
  }
  product<Word>(rows, p, p_words, static_cast<const Word*>(scratch.values), dp, p_words, o, dp,
                true);
}

inline void varlen_finish(const VarlenForwardTile& tile, const VarlenForwardScratch& scratch) {
  const VarlenForwardArgs& args = *tile.args;
  const int64_t d = args.shape.head_dim, dp = padded_dim(d);
  auto* lse = static_cast<float*>(args.lse);
  for (int64_t r = 0; r < tile.tokens * tile.heads; ++r) {
    const int64_t token = tile.q_begin + r / tile.heads, head = tile.first_head + r % tile.heads;
    const RowState state = reinterpret_cast<const RowState*>(scratch.state)[r];
    const bool blind = state.l == 0.0f;  // no key seen; a NaN is not that
    store_row(args.out, args.shape.dtype, token, head, d, blind ? 0.0f : 1.0f / state.l,
              scratch.o + r * dp);
    lse[head * args.lse_stride + token] = blind ? -INFINITY : (state.m + ::log2f(state.l)) / kLog2E;
  }
}

template <class Word>
void varlen_forward(const VarlenForwardTile& tile, const VarlenForwardScratch& scratch) {
  const VarlenShape& shape = tile.args->shape;
  const int64_t rows = tile.tokens * tile.heads, dp = padded_dim(shape.head_dim);
  const int64_t q_words = (shape.head_dim + PageType<Word>::kPack - 1) / PageType<Word>::kPack;
  for (int64_t r = 0; r < rows; ++r) {
    pack_row(tile, tile.q_begin + r / tile.heads, tile.first_head + r % tile.heads,
             static_cast<Word*>(scratch.q) + r * q_words);
    reinterpret_cast<RowState*>(scratch.state)[r] = {-INFINITY, 0.0f};
  }
  zero_floats(scratch.o, rows * dp);
  const int64_t end = visible_keys(shape.causal, tile.first_visible, tile.tokens - 1, tile.keys);
  for (int64_t key = 0; key < end; key += kBlockKeys) {
    if (tile.listed != nullptr && !has_block(tile.listed, key / tile.keys_a_bit)) continue;
    const int64_t count = tile.keys - key < kBlockKeys ? tile.keys - key : kBlockKeys;
    pack_block(tile, key, count, scratch, static_cast<Word*>(scratch.keys));
    for (int64_t r = 0; r < rows; r += kMaxRows)
      varlen_block<Word>(tile, scratch, r, rows - r < kMaxRows ? rows - r : kMaxRows, key);
  }
  varlen_finish(tile, scratch);
}
