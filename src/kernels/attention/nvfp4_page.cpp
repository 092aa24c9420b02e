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

// Row-major codes, scales and exponent of a matrix.
struct Codes {
  std::vector<uint8_t> codes, scales;  // [rows, D / 2], [rows, D / 16]
  int32_t exponent = 0;
};

// The smallest power of two with which no block needs a scale above the rule's bound.
int32_t exponent_of(float amax, float top) {
  if (!(amax > 0)) return 0;
  int exponent = 0;
  const float mantissa = std::frexp(amax / top, &exponent);
  return std::clamp(mantissa == 0.5f ? exponent - 1 : exponent, -100, 115);
}

Codes quantize_rows(const float* x, int64_t rows, int64_t d) {
  Codes out;
  out.codes.resize(size_t(rows * d / 2));
  out.scales.resize(size_t(rows * d / 16));
  nvfp4::QuantizeArgs args;
  args.source = {x, DType::kF32, rows, d, d, false};
  args.recipe.rule = nvfp4::Rule::kSweep;
  args.codes = out.codes.data();
  args.scales = out.scales.data();
  float amax = nvfp4::max_magnitude(args.source, false, 0, rows, nullptr);
  const float top = nvfp4::scale_top(args.recipe);
  if (std::isfinite(amax)) {  // otherwise every scale becomes a NaN
    out.exponent = exponent_of(amax, top);
    amax = std::ldexp(top, out.exponent);
  }
  args.amax = &amax;
  nvfp4::quantize(args, 0, rows);
  return out;
}

std::vector<float> decode(const Codes& from, int64_t rows, int64_t d) {
  std::vector<float> out(size_t(rows * d));
  const float multiplier = std::ldexp(1.0f, from.exponent);
  nvfp4::DequantizeArgs args;
  args.codes = from.codes.data();
  args.scales = from.scales.data();
  args.multiplier = &multiplier;
  args.rows = rows;
  args.k = d;
  args.out = out.data();
  nvfp4::dequantize(args, 0, rows);
  return out;
}

std::vector<float> widen(const uint16_t* x, int64_t n) {
  std::vector<float> out(static_cast<size_t>(n));
  for (int64_t i = 0; i < n; ++i) out[size_t(i)] = bf16_to_float(x[i]);
  return out;
}

// Of the 64 keys, as NVFP4. Sums of 64 bf16 numbers of fp32's largest size would overflow: each is
// divided first, which is exact.
Codes quantize_mean(const std::vector<float>& keys, int64_t d) {
  std::vector<float> mean(size_t(d), 0.0f);
  for (int64_t t = 0; t < kPageTokens; ++t) {
    for (int64_t i = 0; i < d; ++i)
      mean[size_t(i)] += keys[size_t(t * d + i)] * (1.0f / float(kPageTokens));
  }
  return quantize_rows(mean.data(), 1, d);
}

uint32_t* words(std::byte* p) { return reinterpret_cast<uint32_t*>(p); }

// Tokens [0, count) of a block from its quarters, [64, D] bf16.
void load_rows(
    const Bf16Quarters& page, int64_t count, int64_t d, uint16_t* keys, uint16_t* values) {
  for (int64_t slot = 0; slot < count; ++slot, keys += d, values += d) {
    for (int64_t i = 0; i < d / 2; ++i) {
      const uint32_t word = words(page[i < d / 4 ? 0 : 1])[i % (d / 4) * kPageTokens + slot];
      keys[2 * i] = uint16_t(word);
      keys[2 * i + 1] = uint16_t(word >> 16);
    }
    const auto* half = reinterpret_cast<const uint16_t*>(page[slot < kPageTokens / 2 ? 2 : 3]);
    const uint16_t* row = half + slot % (kPageTokens / 2) / 2 * d * 2 + slot % 2;
    for (int64_t i = 0; i < d; ++i) values[i] = row[2 * i];
  }
}

}  // namespace

int64_t nvfp4_page_bytes(int64_t head_dim) {
  // codes and scales of keys, values and mean; three exponents; quarters of a bf16 page fit as well
  return round_up(kPageTokens * head_dim * 2 * 9 / 16 + head_dim * 9 / 16 + 3, 8);
}

Bf16Quarters sink_quarters(std::byte* pool,
                           int64_t page_bytes,
                           int32_t first,
                           const int32_t* side) {
  Bf16Quarters quarters{pool + int64_t(first) * page_bytes};
  for (size_t i = 0; i < kSinkPages; ++i) quarters[i + 1] = pool + int64_t(side[i]) * page_bytes;
  return quarters;
}

Bf16Quarters newest_quarters(std::byte* pool, int64_t page_bytes, const int32_t* side) {
  Bf16Quarters quarters;
  for (size_t i = 0; i < kQuarters; ++i)
    quarters[i] = pool + int64_t(side[i + kSinkPages]) * page_bytes;
  return quarters;
}

bool stored_late(int64_t start, int64_t kv_len) {
  return start > kPageTokens && start % kPageTokens != 0 && kv_len % kPageTokens != 0 &&
         kv_len / kPageTokens > start / kPageTokens;
}

void set_nvfp4(Tile& tile,
               const PagedKv& kv,
               const BatchShape& shape,
               const float* rows,
               int64_t ld,
               int64_t heads,
               int64_t b,
               int64_t kv_head) {
  const int64_t kv_len = shape.kv_lens[b], d = kv.head_dim, first = shape.cu_seqlens[b];
  const float* keys = rows + first * ld + (heads + kv_head) * d;
  tile.side = kv.block_table + (b * kv.kv_heads + kv_head + 1) * kv.max_blocks - kSideBlocks;
  tile.fresh = {keys, keys + kv.kv_heads * d, ld};
  tile.fresh_begin = kv_len - (shape.cu_seqlens[b + 1] - first);
  tile.partial_block = kv_len % kPageTokens == 0 ? -1 : kv_len / kPageTokens;
  tile.partial_stored = !stored_late(tile.fresh_begin, kv_len);
}

void rotate_heads(float* x, int64_t count, int64_t d) {
  const int64_t n = d & -d;
  const float factor = 1.0f / std::sqrt(float(n));
  for (int64_t i = 0; i < count; ++i) x[i] *= factor;
  for (int64_t half = 1; half < n; half *= 2) {
    for (int64_t begin = 0; begin < count; begin += 2 * half) {
      for (int64_t i = begin; i < begin + half; ++i) {
        const float a = x[i], b = x[i + half];
        x[i] = a + b;
        x[i + half] = a - b;
      }
    }
  }
}

void quantize_page(const uint16_t* keys, const uint16_t* values, int64_t d, std::byte* page) {
  std::vector<float> rest = widen(keys, kPageTokens * d);
  const Codes mean = quantize_mean(rest, d);
  const std::vector<float> offset = decode(mean, 1, d);
  for (int64_t i = 0; i < kPageTokens * d; ++i) rest[size_t(i)] -= offset[size_t(i % d)];
  const Codes k = quantize_rows(rest.data(), kPageTokens, d);
  const Codes v = quantize_rows(widen(values, kPageTokens * d).data(), kPageTokens, d);
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
  out = std::copy(mean.codes.begin(), mean.codes.end(), out);
  out = std::copy(mean.scales.begin(), mean.scales.end(), out);
  for (const Codes* part : {&k, &v, &mean}) *out++ = uint8_t(int8_t(part->exponent));
}

void store_rows(
    const Bf16Quarters& page, int64_t slot, int64_t tokens, int64_t d, const KvRows& rows) {
  // Values that are never visible must still be finite, since 0 * NaN is NaN.
  if (slot == 0) {
    for (const int half : {2, 3}) std::memset(page[size_t(half)], 0, size_t(kPageTokens * d));
  }
  for (int64_t t = 0; t < tokens; ++t, ++slot) {
    const float *key = rows.keys + t * rows.ld, *value = rows.values + t * rows.ld;
    for (int64_t i = 0; i < d / 2; ++i) {
      uint32_t* half = words(page[i < d / 4 ? 0 : 1]);
      half[i % (d / 4) * kPageTokens + slot] =
          float_to_bf16(key[2 * i]) | uint32_t(float_to_bf16(key[2 * i + 1])) << 16;
    }
    auto* half = reinterpret_cast<uint16_t*>(page[slot < kPageTokens / 2 ? 2 : 3]);
    uint16_t* row = half + slot % (kPageTokens / 2) / 2 * d * 2 + slot % 2;
    for (int64_t i = 0; i < d; ++i) row[2 * i] = float_to_bf16(value[i]);
  }
}

void append_nvfp4(const AppendUnit& unit, int64_t head) {
  const int64_t d = unit.head_dim, slot = unit.position % kPageTokens;
  const int64_t end = slot + unit.tokens;
  const int32_t* side = unit.side + head * unit.max_blocks;
  const int32_t id = unit.pages[head * unit.max_blocks];
  const float* first = unit.rows + (unit.args->heads + head) * d;
  const KvRows rows{first, first + unit.kv_heads * d, unit.args->ld};
  if (unit.position < kPageTokens)
    return store_rows(sink_quarters(unit.pool, unit.page_bytes, id, side), slot, unit.tokens, d,
                      rows);
  const Bf16Quarters newest = newest_quarters(unit.pool, unit.page_bytes, side);
  if (end < kPageTokens) {
    if (!unit.later) store_rows(newest, slot, unit.tokens, d, rows);
    return;
  }
  std::vector<uint16_t> keys(size_t(kPageTokens * d)), values(size_t(kPageTokens * d));
  load_rows(newest, slot, d, keys.data(), values.data());
  for (int64_t t = slot; t < end; ++t) {
    for (int64_t i = 0; i < d; ++i) {
      keys[size_t(t * d + i)] = float_to_bf16(rows.keys[(t - slot) * rows.ld + i]);
      values[size_t(t * d + i)] = float_to_bf16(rows.values[(t - slot) * rows.ld + i]);
    }
  }
  quantize_page(keys.data(), values.data(), d, unit.pool + int64_t(id) * unit.page_bytes);
}

}  // namespace longspur::kernels::attention
