// Body of the paged attention tile and of the append, compiled once an instruction set, after
// step-inl.h.

inline void pack_query(const float* q, int64_t d, float scale, uint32_t* out) {
  auto* halves = reinterpret_cast<uint16_t*>(out);
  for (int64_t i = 0; i < d; ++i) halves[i] = uint16_t(bf16_bits(q[i] * scale));
}
inline void pack_query(const float* q, int64_t d, float scale, float* out) {
  for (int64_t i = 0; i < d; ++i) out[i] = q[i] * scale;
}

template <class Word>
inline void finish_rows(const Tile& tile, const RowState* states, const float* o, int64_t dp) {
  for (int64_t r = 0; r < tile.tokens * tile.group; ++r) {
    const float* row = o + r * dp;
    if (tile.partial != nullptr) {
      float* partial = tile.partial + r * (dp + 2);
      std::memcpy(partial, row, size_t(dp) * sizeof(float));
      partial[dp] = states[r].m;
      partial[dp + 1] = states[r].l;
      continue;
    }
    float* out = tile.out + (r / tile.group) * tile.ldo + (r % tile.group) * tile.head_dim;
    const float inverse = states[r].l > 0.0f ? 1.0f / states[r].l : 0.0f;
    if (tile.lse != nullptr) {
      tile.lse[r / tile.group * tile.lse_stride + r % tile.group] =
          natural_lse(states[r].m, states[r].l);
    }
    for (int64_t i = 0; i < tile.head_dim; ++i) out[i] = row[i] * inverse;
  }
}

// The blocks of a mask that were skipped, each as one key: means-inl.h.
template <class Word>
void attend_means(const Tile& tile, const TileScratch& scratch, RowState* states);

// A full page, for queries of later blocks.
template <class Word>
inline const std::byte* open_page(const Tile& tile, int64_t block, std::byte* scratch) {
  if (tile.type == KvType::kNVFP4)
    return block == 0 ? open_bf16(tile, 0, scratch) : open_nvfp4(tile, block, scratch);
  return tile.pool + int64_t(tile.pages[block]) * tile.page_bytes;
}

// Rows [begin, end) of a tile against one page. next: the page to come, or null. A tile with few
// rows waits for memory, not for arithmetic: while it works on a page, the same part of the next
// page is on its way.
template <class Word>
inline __attribute__((always_inline)) void attend_page(const Tile& tile,
                                                       const TileScratch& scratch,
                                                       RowState* states,
                                                       int64_t block,
                                                       const std::byte* page,
                                                       const std::byte* next,
                                                       int64_t begin,
                                                       int64_t end) {
  constexpr int kPack = PageType<Word>::kPack;
  const int64_t d = tile.head_dim, dp = padded_dim(d), rows = end - begin;
  const int64_t q_words = d / kPack, p_words = kPageTokens / kPack;
  const int64_t offset = value_offset(PageType<Word>::kType, d);
  const auto* q = static_cast<const Word*>(scratch.q) + begin * q_words;
  auto* p = static_cast<Word*>(scratch.p);
  float* o = scratch.o + begin * dp;
  product<Word>(rows, q, q_words, reinterpret_cast<const Word*>(page), kPageTokens, q_words,
                scratch.s, kPageTokens, false, reinterpret_cast<const Word*>(next));
  const int64_t last_position = tile.first_position + tile.tokens - 1;
  const bool causal_edge = (block + 1) * kPageTokens > tile.first_position + 1;
  const bool window_edge = tile.window > 0 && block * kPageTokens <= last_position - tile.window;
  for (int64_t r = 0; r < rows; ++r) {
    float* s = scratch.s + r * kPageTokens;
    if (causal_edge || window_edge)
      mask_row(s, block, tile.first_position + (begin + r) / tile.group, tile.window);
    softmax_row<Word, true>(s, 1.0f, states[begin + r], o + r * dp, dp, p + r * p_words);
  }
  product<Word>(rows, p, p_words, reinterpret_cast<const Word*>(page + offset), dp, p_words, o, dp,
                true, reinterpret_cast<const Word*>(next == nullptr ? nullptr : next + offset));
}

// Queries of the block itself read it in bf16, later ones in NVFP4; block 0 is bf16 for all.
template <class Word>
inline void attend_nvfp4(const Tile& tile,
                         const TileScratch& scratch,
                         RowState* states,
                         int64_t block) {
  const auto rows_before = [&](int64_t position) {
    return std::clamp<int64_t>(position - tile.first_position, 0, tile.tokens) * tile.group;
  };
  const int64_t begin = rows_before(block * kPageTokens), rows = tile.tokens * tile.group;
  const int64_t end = block == 0 ? rows : rows_before((block + 1) * kPageTokens);
  if (begin < end) {
    const std::byte* page = open_bf16(tile, block, scratch.page);
    attend_page<Word>(tile, scratch, states, block, page, nullptr, begin, end);
  }
  if (end < rows) {
    const std::byte* page = open_nvfp4(tile, block, scratch.page);
    attend_page<Word>(tile, scratch, states, block, page, nullptr, end, rows);
  }
}

template <class Word>
void attend(const Tile& tile, const TileScratch& scratch) {
  const int64_t rows = tile.tokens * tile.group, d = tile.head_dim, dp = padded_dim(d);
  auto* q = static_cast<Word*>(scratch.q);
  RowState states[kMaxRows];
  for (int64_t r = 0; r < rows; ++r) {
    const float* from = tile.q + (r / tile.group) * tile.ldq + (r % tile.group) * d;
    pack_query(from, d, tile.scale * kLog2E, q + r * (d / PageType<Word>::kPack));
    states[r] = {-INFINITY, 0.0f};
  }
  std::memset(scratch.o, 0, size_t(rows * dp) * sizeof(float));
  const auto page_of = [&](int64_t block) {
    return block < 0 ? nullptr : tile.pool + int64_t(tile.pages[block]) * tile.page_bytes;
  };
  int64_t following = listed_block(tile, tile.first_block);
  while (following < tile.end_block) {
    const int64_t block = following;
    following = listed_block(tile, block + 1);
    if (tile.type == KvType::kNVFP4) {
      attend_nvfp4<Word>(tile, scratch, states, block);
      continue;
    }
    const std::byte* next = page_of(following < tile.end_block ? following : tile.later_block);
    attend_page<Word>(tile, scratch, states, block, page_of(block), next, 0, rows);
  }
  if (tile.means != nullptr) attend_means<Word>(tile, scratch, states);
  finish_rows<Word>(tile, states, scratch.o, dp);
}

// --- rotation and append ---

inline void norm_head(float* x, const float* weight, int64_t d, float eps) {
  float squares = 0.0f;
  for (int64_t i = 0; i < d; ++i) squares += x[i] * x[i];
  const float scale = 1.0f / ::sqrtf(squares / float(d) + eps);
  for (int64_t i = 0; i < d; ++i) x[i] = x[i] * scale * weight[i];
}

inline void rotate_head(float* __restrict x,
                        const float* __restrict cos,
                        const float* __restrict sin,
                        int64_t half) {
  float* __restrict y = x + half;
  for (int64_t i = 0; i < half; ++i) {
    const float a = x[i], b = y[i];
    x[i] = a * cos[i] - b * sin[i];
    y[i] = b * cos[i] + a * sin[i];
  }
}

inline void store_key_value(
    uint32_t* page, int64_t slot, int64_t d, const float* k, const float* v) {
  for (int64_t i = 0; i < d / 2; ++i) {
    page[i * kPageTokens + slot] = bf16_bits(k[2 * i]) | bf16_bits(k[2 * i + 1]) << 16;
  }
  auto* values = reinterpret_cast<uint16_t*>(page + d / 2 * kPageTokens);
  uint16_t* row = values + slot / 2 * padded_dim(d) * 2 + slot % 2;
  for (int64_t i = 0; i < d; ++i) row[2 * i] = uint16_t(bf16_bits(v[i]));
}
inline void store_key_value(float* page, int64_t slot, int64_t d, const float* k, const float* v) {
  for (int64_t i = 0; i < d; ++i) page[i * kPageTokens + slot] = k[i];
  std::memcpy(page + d * kPageTokens + slot * padded_dim(d), v, size_t(d) * sizeof(float));
}

template <class Word>
inline void append_page(const AppendUnit& unit, int64_t head) {
  const int64_t d = unit.head_dim, slot = unit.position % kPageTokens;
  std::byte* page = unit.pool + int64_t(unit.pages[head * unit.max_blocks]) * unit.page_bytes;
  // A fresh page: values that are never visible must still be finite, since 0 * NaN is NaN.
  if (slot == 0) {
    const int64_t offset = value_offset(PageType<Word>::kType, d);
    std::memset(page + offset, 0, size_t(unit.page_bytes - offset));
  }
  const int64_t heads = unit.args->heads;
  for (int64_t t = 0; t < unit.tokens; ++t) {
    const float* row = unit.rows + t * unit.args->ld;
    store_key_value(reinterpret_cast<Word*>(page), slot + t, d, row + (heads + head) * d,
                    row + (heads + unit.kv_heads + head) * d);
  }
}

void append(const AppendUnit& unit) {
  const RopeAppendArgs& args = *unit.args;
  const int64_t d = unit.head_dim, half = args.rotary_dim / 2;
  for (int64_t t = 0; t < unit.tokens; ++t) {
    float* row = unit.rows + t * args.ld;
    const float* cos = args.cos + (unit.position + t) * half;
    const float* sin = args.sin + (unit.position + t) * half;
    for (int64_t h = 0; h < args.heads + unit.kv_heads; ++h) {
      const float* norm = h < args.heads ? args.q_norm : args.k_norm;
      if (norm != nullptr) norm_head(row + h * d, norm, d, args.norm_eps);
      rotate_head(row + h * d, cos, sin, half);
    }
    if (unit.type == KvType::kNVFP4) rotate_heads(row, (args.heads + unit.kv_heads) * d, d);
  }
  for (int64_t g = 0; g < unit.kv_heads; ++g) {
    if (unit.type == KvType::kNVFP4)
      append_nvfp4(unit, g);
    else if (unit.type == KvType::kBF16)
      append_page<uint32_t>(unit, g);
    else
      append_page<float>(unit, g);
  }
}
