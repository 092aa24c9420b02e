// NVFP4 pages and the quarters of bf16 ones as whole bf16 pages, compiled once an instruction set,
// after step-inl.h. Loops that the compiler makes vectors of.

inline uint32_t float_bits(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}

// Half of 2^exponent times E4M3 (the other half is in twice_e2m1).
inline void decode_scales(const uint8_t* codes, int64_t n, int32_t exponent, float* scales) {
  const float normal = ::ldexpf(0.5f, exponent);
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t code = codes[i] & 0x7fu;
    // 0x7f is a NaN: the exponent field becomes all ones
    const uint32_t bits = (code << 20) + (120u << 23) + (code == 0x7fu ? 0x7f800000u : 0u);
    const uint32_t usual = code == 0x7fu ? 0x7fc00000u : bits;
    float value;
    std::memcpy(&value, &usual, 4);
    const float small = float(int32_t(code)) * 0x1p-9f;
    scales[i] = (code < 8 ? small : value) * normal;
  }
}

// Twice the magnitude of a code: nibbles of a constant.
inline float twice_e2m1(uint32_t code) {
  return float(int32_t(0xc8643210u >> ((code & 7u) * 4u) & 15u));
}

// Two codes in a byte to two bf16 in a word; exact, so that the low halves of the floats are zero.
inline uint32_t decode_pair(uint32_t byte, float low_scale, float high_scale) {
  const uint32_t low = float_bits(twice_e2m1(byte) * low_scale) | (byte & 0x08u) << 28;
  const uint32_t high = float_bits(twice_e2m1(byte >> 4) * high_scale) | (byte & 0x80u) << 24;
  return low >> 16 | (high & 0xffff0000u);
}

inline void decode_page(const Nvfp4Page& page, uint32_t* __restrict out) {
  const int64_t d = page.d;
  float scales[kPageTokens * kMaxNvfp4Dim / 16];
  decode_scales(page.key_scales(), 4 * d, page.exponents()[0], scales);
  for (int64_t i = 0; i < d / 2; ++i) {
    const float* scale = scales + i / 8 * kPageTokens;
    const uint8_t* codes = page.key_codes() + i * kPageTokens;
    for (int64_t t = 0; t < kPageTokens; ++t) out[t] = decode_pair(codes[t], scale[t], scale[t]);
    out += kPageTokens;
  }
  decode_scales(page.value_scales(), 4 * d, page.exponents()[1], scales);
  for (int64_t t = 0; t < kPageTokens; t += 2) {
    const uint8_t* codes = page.value_codes() + t / 2 * d;
    for (int64_t block = 0; block < d / 16; ++block) {
      const float even = scales[t * (d / 16) + block], odd = scales[(t + 1) * (d / 16) + block];
      for (int64_t i = 0; i < 16; ++i) out[i] = decode_pair(codes[i], even, odd);
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
