#include "kernels/attention/nvfp4_page.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "base/half.h"
#include "base/shape.h"
#include "kernels/nvfp4/api.h"

namespace longspur::kernels::attention {

namespace {

// Row-major codes, scales and exponent of one half of a page.
struct Half {
  std::vector<uint8_t> codes, scales;  // [64, D / 2], [64, D / 16]
  int32_t exponent = 0;
};

// The smallest power of two with which no block needs a scale above the rule's bound.
int32_t exponent_of(float amax, float top) {
  if (!(amax > 0)) return 0;
  int exponent = 0;
  const float mantissa = std::frexp(amax / top, &exponent);
  return std::clamp(mantissa == 0.5f ? exponent - 1 : exponent, -100, 115);
}

Half quantize_half(const uint16_t* x, int64_t d) {
  Half half;
  half.codes.resize(size_t(kPageTokens * d / 2));
  half.scales.resize(size_t(kPageTokens * d / 16));
  nvfp4::QuantizeArgs args;
  args.source = {x, DType::kBF16, kPageTokens, d, d, false};
  args.recipe.rule = nvfp4::Rule::kSweep;
  args.codes = half.codes.data();
  args.scales = half.scales.data();
  float amax = nvfp4::max_magnitude(args.source, false, 0, kPageTokens, nullptr);
  const float top = nvfp4::scale_top(args.recipe);
  if (std::isfinite(amax)) {  // otherwise every scale becomes a NaN
    half.exponent = exponent_of(amax, top);
    amax = std::ldexp(top, half.exponent);
  }
  args.amax = &amax;
  nvfp4::quantize(args, 0, kPageTokens);
  return half;
}

uint32_t* words(std::byte* p) { return reinterpret_cast<uint32_t*>(p); }

// Rows are stored into and read from quarters by these two alone.
void store_row(
    const Bf16Quarters& page, int64_t slot, int64_t d, const uint16_t* key, const uint16_t* value) {
  for (int64_t i = 0; i < d / 2; ++i) {
    uint32_t* half = words(page[i < d / 4 ? 0 : 1]);
    half[i % (d / 4) * kPageTokens + slot] = key[2 * i] | uint32_t(key[2 * i + 1]) << 16;
  }
  auto* half = reinterpret_cast<uint16_t*>(page[slot < kPageTokens / 2 ? 2 : 3]);
  uint16_t* row = half + slot % (kPageTokens / 2) / 2 * d * 2 + slot % 2;
  for (int64_t i = 0; i < d; ++i) row[2 * i] = value[i];
}

void load_row(const Bf16Quarters& page, int64_t slot, int64_t d, uint16_t* key, uint16_t* value) {
  for (int64_t i = 0; i < d / 2; ++i) {
    const uint32_t word = words(page[i < d / 4 ? 0 : 1])[i % (d / 4) * kPageTokens + slot];
    key[2 * i] = uint16_t(word);
    key[2 * i + 1] = uint16_t(word >> 16);
  }
  const auto* half = reinterpret_cast<const uint16_t*>(page[slot < kPageTokens / 2 ? 2 : 3]);
  const uint16_t* row = half + slot % (kPageTokens / 2) / 2 * d * 2 + slot % 2;
  for (int64_t i = 0; i < d; ++i) value[i] = row[2 * i];
}

}  // namespace

int64_t nvfp4_page_bytes(int64_t head_dim) {
  // codes, scales, two exponents; the quarters of a bf16 page fit as well
  return round_up(kPageTokens * head_dim * 2 * 9 / 16 + 8, 8);
}

Bf16Quarters bf16_quarters(std::byte* pool, int64_t page_bytes, const int32_t* side, bool sinks) {
  Bf16Quarters quarters;
  for (size_t i = 0; i < quarters.size(); ++i)
    quarters[i] = pool + int64_t(side[i + (sinks ? 0 : kBf16Pages)]) * page_bytes;
  return quarters;
}

void quantize_page(const uint16_t* keys, const uint16_t* values, int64_t d, std::byte* page) {
  const Half k = quantize_half(keys, d), v = quantize_half(values, d);
  auto* out = reinterpret_cast<uint8_t*>(page);
  for (int64_t i = 0; i < d / 2; ++i) {
    for (int64_t t = 0; t < kPageTokens; ++t) *out++ = k.codes[size_t(t * (d / 2) + i)];
  }
  for (int64_t t = 0; t < kPageTokens; t += 2) {
    const uint8_t *even = v.codes.data() + t * (d / 2), *odd = even + d / 2;
    for (int64_t i = 0; i < d / 2; ++i) {
      *out++ = uint8_t((even[i] & 15) | odd[i] << 4);
      *out++ = uint8_t(even[i] >> 4 | (odd[i] & 0xf0));
    }
  }
  for (int64_t block = 0; block < d / 16; ++block) {
    for (int64_t t = 0; t < kPageTokens; ++t) *out++ = k.scales[size_t(t * (d / 16) + block)];
  }
  out = std::copy(v.scales.begin(), v.scales.end(), out);
  std::memcpy(out, &k.exponent, sizeof(k.exponent));
  std::memcpy(out + sizeof(k.exponent), &v.exponent, sizeof(v.exponent));
}

void append_nvfp4(const AppendUnit& unit, int64_t head) {
  const int64_t d = unit.head_dim, slot = unit.position % kPageTokens;
  const int64_t end = slot + unit.tokens;
  const bool sinks = unit.position < kPageTokens, whole = !sinks && slot == 0 && end == kPageTokens;
  const Bf16Quarters quarters =
      bf16_quarters(unit.pool, unit.page_bytes, unit.side + head * unit.max_blocks, sinks);
  // Values that are never visible must still be finite, since 0 * NaN is NaN.
  if (slot == 0 && !whole) {
    for (const int half : {2, 3}) std::memset(quarters[size_t(half)], 0, size_t(kPageTokens * d));
  }
  std::vector<uint16_t> keys(size_t(kPageTokens * d)), values(size_t(kPageTokens * d));
  for (int64_t t = slot; t < end; ++t) {
    const float* row = unit.rows + (t - slot) * unit.args->ld;
    const float* k = row + (unit.args->heads + head) * d;
    const float* v = k + unit.kv_heads * d;
    for (int64_t i = 0; i < d; ++i) {
      keys[size_t(t * d + i)] = float_to_bf16(k[i]);
      values[size_t(t * d + i)] = float_to_bf16(v[i]);
    }
    if (!whole) store_row(quarters, t, d, &keys[size_t(t * d)], &values[size_t(t * d)]);
  }
  if (sinks || end < kPageTokens) return;
  for (int64_t t = 0; t < slot; ++t)
    load_row(quarters, t, d, &keys[size_t(t * d)], &values[size_t(t * d)]);
  std::byte* page = unit.pool + int64_t(unit.pages[head * unit.max_blocks]) * unit.page_bytes;
  quantize_page(keys.data(), values.data(), d, page);
}

}  // namespace longspur::kernels::attention
