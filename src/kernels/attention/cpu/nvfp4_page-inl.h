// NVFP4 pages and the quarters of bf16 ones as whole bf16 pages, compiled once an instruction set,
// after step-inl.h.

// attend-inl.h
inline void store_key_value(
    uint32_t* page, int64_t slot, int64_t d, const float* k, const float* v);

// 2^exponent times E4M3. The compiler makes vectors of it.
inline void decode_scales(const uint8_t* codes, int64_t n, int32_t exponent, float* scales) {
  const float factor = ::ldexpf(1.0f, exponent);
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t code = codes[i] & 0x7fu;
    const uint32_t bits = code == 0x7fu ? 0x7fc00000u : (code << 20) + (120u << 23);
    float value;
    std::memcpy(&value, &bits, 4);
    const float small = float(int32_t(code)) * 0x1p-9f;
    scales[i] = (code < 8 ? small : value) * factor;
  }
}

inline void decode_mean(const Nvfp4Page& page, float* mean) {
  float scales[kMaxNvfp4Dim / 16];
  decode_scales(page.mean_scales(), page.d / 16, page.exponents()[2], scales);
  for (int64_t i = 0; i < page.d / 2; ++i) {
    const uint8_t codes = page.mean_codes()[i];
    mean[2 * i] = kE2m1[codes & 15] * scales[i / 8];
    mean[2 * i + 1] = kE2m1[codes >> 4] * scales[i / 8];
  }
}

inline void decode_page(const Nvfp4Page& page, uint32_t* __restrict out) {
  const int64_t d = page.d;
  float scales[kPageTokens * kMaxNvfp4Dim / 16], mean[kMaxNvfp4Dim];
  decode_mean(page, mean);
  decode_scales(page.key_scales(), 4 * d, page.exponents()[0], scales);
  for (int64_t i = 0; i < d / 2; ++i) {
    const float* scale = scales + i / 8 * kPageTokens;
    const uint8_t* codes = page.key_codes() + i * kPageTokens;
    const Simd::F low = Simd::set1(mean[2 * i]), high = Simd::set1(mean[2 * i + 1]);
    for (int64_t t = 0; t < kPageTokens; t += Simd::kWidth) {
      const Simd::F factor = Simd::load(scale + t);
      Simd::decode_pairs(codes + t, factor, low, high, out + t);
    }
    out += kPageTokens;
  }
  decode_scales(page.value_scales(), 4 * d, page.exponents()[1], scales);
  for (int64_t t = 0; t < kPageTokens; t += 2) {
    const uint8_t* codes = page.value_codes() + t / 2 * d;
    for (int64_t block = 0; block < d / 16; ++block) {
      const Simd::F even = Simd::set1(scales[t * (d / 16) + block]);
      const Simd::F odd = Simd::set1(scales[(t + 1) * (d / 16) + block]);
      for (int i = 0; i < 16; i += Simd::kWidth) Simd::decode_pairs(codes + i, even, odd, out + i);
      out += 16;
      codes += 16;
    }
  }
}

// Block `block` of the tile as a bf16 page, in `out`; for queries of a later block.
inline const std::byte* open_nvfp4(const Tile& tile, int64_t block, std::byte* out) {
  const std::byte* page = tile.pool + int64_t(tile.pages[block]) * tile.page_bytes;
  decode_page({page, tile.head_dim}, reinterpret_cast<uint32_t*>(out));
  return out;
}

// The same for queries of the block itself and, where it is block 0, of all: tokens as they were
// stored in bf16 or as this call's rows have them.
inline const std::byte* open_bf16(const Tile& tile, int64_t block, std::byte* out) {
  const int64_t d = tile.head_dim, begin = block * kPageTokens, quarter = kPageTokens * d;
  auto* pool = const_cast<std::byte*>(tile.pool);
  const Bf16Quarters from = block == 0
                                ? sink_quarters(pool, tile.page_bytes, tile.pages[0], tile.side)
                                : newest_quarters(pool, tile.page_bytes, tile.side);
  const bool stored = block == 0 || (block == tile.partial_block && tile.partial_stored);
  if (stored || begin < tile.fresh_begin) {
    for (int i = 0; i < kQuarters; ++i)
      std::memcpy(out + i * quarter, from[size_t(i)], size_t(quarter));
  } else {
    std::memset(out + 2 * quarter, 0, size_t(2 * quarter));  // a NaN would show through 0 * NaN
  }
  if (stored) return out;
  const int64_t last = std::min(begin + kPageTokens, tile.first_position + tile.tokens);
  for (int64_t position = std::max(begin, tile.fresh_begin); position < last; ++position) {
    const int64_t row = (position - tile.fresh_begin) * tile.fresh.ld;
    store_key_value(reinterpret_cast<uint32_t*>(out), position - begin, d, tile.fresh.keys + row,
                    tile.fresh.values + row);
  }
  return out;
}
