// NVFP4 pages and the quarters of bf16 ones as whole bf16 pages, compiled once an instruction set,
// after step-inl.h.

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

inline void decode_page(const Nvfp4Page& page, uint32_t* __restrict out) {
  const int64_t d = page.d;
  float scales[kPageTokens * kMaxNvfp4Dim / 16];
  decode_scales(page.key_scales(), 4 * d, page.exponents()[0], scales);
  for (int64_t i = 0; i < d / 2; ++i) {
    const float* scale = scales + i / 8 * kPageTokens;
    const uint8_t* codes = page.key_codes() + i * kPageTokens;
    for (int64_t t = 0; t < kPageTokens; t += Simd::kWidth) {
      const Simd::F factor = Simd::load(scale + t);
      Simd::decode_pairs(codes + t, factor, factor, out + t);
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

// Block `block` of the tile as a bf16 page.
inline const std::byte* open_nvfp4(const Tile& tile, int64_t block, std::byte* out) {
  if (block > 0 && block != tile.partial_block) {
    const std::byte* page = tile.pool + int64_t(tile.pages[block]) * tile.page_bytes;
    decode_page({page, tile.head_dim}, reinterpret_cast<uint32_t*>(out));
    return out;
  }
  const int32_t* side = tile.side + (block == 0 ? 0 : kBf16Pages);
  const int64_t quarter = kPageTokens * tile.head_dim;
  for (int i = 0; i < kBf16Pages; ++i) {
    const std::byte* from = tile.pool + int64_t(side[i]) * tile.page_bytes;
    std::memcpy(out + i * quarter, from, size_t(quarter));
  }
  return out;
}
