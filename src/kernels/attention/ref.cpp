// Reference: plain loops in double over the keys and values as the pages hold them.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "base/half.h"
#include "kernels/attention/nvfp4_page.h"
#include "kernels/attention/paged.h"
#include "kernels/attention/tile.h"
#include "kernels/nvfp4/codec.h"

namespace longspur::kernels::attention {

namespace {

// Rounded as decoding does when a mean was added.
double key_sum(float rest, float mean) { return bf16_to_float(float_to_bf16(rest + mean)); }

// Of a full page in NVFP4, not block 0.
double packed_nvfp4(const Nvfp4Page& page, int64_t slot, int64_t i, bool value) {
  const int64_t d = page.d;
  const auto number = [&](uint32_t byte, int64_t odd, uint32_t scale, int part) {
    return std::ldexp(nvfp4::e2m1_decode(byte >> (odd * 4) & 15) * nvfp4::e4m3_decode(scale),
                      page.exponents()[part]);
  };
  if (value) {
    return double(number(page.value_codes()[slot / 2 * d + i], slot % 2,
                         page.value_scales()[slot * (d / 16) + i / 16], 1));
  }
  return key_sum(number(page.key_codes()[i / 2 * kPageTokens + slot], i % 2,
                        page.key_scales()[i / 16 * kPageTokens + slot], 0),
                 number(page.mean_codes()[i / 2], i % 2, page.mean_scales()[i / 16], 2));
}

double in_quarters(const Bf16Quarters& quarters, int64_t d, int64_t slot, int64_t i, bool value) {
  const int64_t at =
      value ? (slot / 2 * d + i) * 2 + slot % 2 : (i / 2 * kPageTokens + slot) * 2 + i % 2;
  const int64_t quarter = kPageTokens * d / 2;  // elements
  const auto* half = quarters[size_t((value ? 2 : 0) + at / quarter)];
  return bf16_to_float(reinterpret_cast<const uint16_t*>(half)[at % quarter]);
}

// What queries of the position's own block see of it (own), or those of later blocks. The call's
// rows are tokens from position fresh_begin on.
struct Nvfp4View {
  const PagedKv& kv;
  const int32_t* row;
  int64_t fresh_begin;
  KvRows fresh;

  double at(int64_t position, int64_t i, bool value, bool own) const {
    const int64_t block = position / kPageTokens, slot = position % kPageTokens, d = kv.head_dim;
    const int64_t bytes = page_bytes(kv.type, d);
    const int32_t* side = row + kv.max_blocks - kSideBlocks;
    if (block == 0)
      return in_quarters(sink_quarters(kv.pool, bytes, *row, side), d, slot, i, value);
    if (!own) return packed_nvfp4({kv.pool + int64_t(row[block]) * bytes, d}, slot, i, value);
    if (position < fresh_begin)
      return in_quarters(newest_quarters(kv.pool, bytes, side), d, slot, i, value);
    const float* rows = value ? fresh.values : fresh.keys;
    return bf16_to_float(float_to_bf16(rows[(position - fresh_begin) * fresh.ld + i]));
  }
};

// Element i of the key or value of `position` in a page of bf16 or fp32.
double plain(const PagedKv& kv, const int32_t* row, int64_t position, int64_t i, bool value) {
  const int32_t id = row[position / kPageTokens];
  const std::byte* page = kv.pool + id * page_bytes(kv.type, kv.head_dim);
  const int64_t slot = position % kPageTokens, dp = padded_dim(kv.head_dim);
  if (value) page += value_offset(kv.type, kv.head_dim);
  if (kv.type == KvType::kF32) {
    const int64_t at = value ? slot * dp + i : i * kPageTokens + slot;
    return reinterpret_cast<const float*>(page)[at];
  }
  const int64_t at =
      value ? (slot / 2 * dp + i) * 2 + slot % 2 : (i / 2 * kPageTokens + slot) * 2 + i % 2;
  return bf16_to_float(reinterpret_cast<const uint16_t*>(page)[at]);
}

// A key that a query reads, and what its score is more than the product.
struct Seen {
  int64_t key;
  double bonus = 0.0;
};

// Softmax of one query over some keys of one head, in double; the log of the sum of exponentials.
double attend_row(const float* q,
                  const std::vector<double>& keys,
                  const std::vector<double>& values,
                  const std::vector<Seen>& seen,
                  int64_t d,
                  double scale,
                  float* out) {
  std::vector<double> scores, sums(static_cast<size_t>(d), 0.0);
  double max = -HUGE_VAL, sum = 0.0;
  for (const Seen& s : seen) {
    double dot = 0.0;
    for (int64_t i = 0; i < d; ++i) dot += double(q[i]) * keys[size_t(s.key * d + i)];
    scores.push_back(dot * scale + s.bonus);
    max = std::max(max, scores.back());
  }
  for (size_t n = 0; n < seen.size(); ++n) {
    const double weight = std::exp(scores[n] - max);
    sum += weight;
    for (int64_t i = 0; i < d; ++i) sums[size_t(i)] += weight * values[size_t(seen[n].key * d + i)];
  }
  for (int64_t i = 0; i < d; ++i) out[i] = seen.empty() ? 0.0f : float(sums[size_t(i)] / sum);
  return seen.empty() ? -HUGE_VAL : max + std::log(sum);
}

// Whether the query at `position` may read key s.
bool lists(const PagedMask* mask,
           const BatchShape& shape,
           int64_t b,
           int64_t head,
           int64_t heads,
           int64_t position,
           int64_t s) {
  if (!is_masked(mask, shape, b)) return true;
  const int64_t tokens = shape.cu_seqlens[b + 1] - shape.cu_seqlens[b];
  const int64_t first = (shape.kv_lens[b] - tokens) / kQueryBlock;
  const BlockMask& blocks = mask->blocks;
  return has_block(blocks.row(b, head * blocks.heads / heads, position / kQueryBlock - first),
                   s / blocks.block_size);
}

// One KV head's keys and values, [kv_len, D], as queries in block `own` see them.
struct Cached {
  std::vector<double> keys, values;
};
Cached rows_for(const AttentionArgs& args,
                const BatchShape& shape,
                const PagedKv& kv,
                int64_t b,
                int64_t g,
                int64_t own) {
  const int32_t* table = kv.block_table + (b * kv.kv_heads + g) * kv.max_blocks;
  const int64_t start = shape.kv_lens[b] - (shape.cu_seqlens[b + 1] - shape.cu_seqlens[b]);
  const float* keys = args.q + shape.cu_seqlens[b] * args.ldq + (args.heads + g) * kv.head_dim;
  const Nvfp4View view{kv, table, start, {keys, keys + kv.kv_heads * kv.head_dim, args.ldq}};
  Cached rows;
  for (int64_t s = 0; s < shape.kv_lens[b]; ++s) {
    for (int64_t i = 0; i < kv.head_dim; ++i) {
      for (const bool value : {false, true}) {
        const double x = kv.type == KvType::kNVFP4 ? view.at(s, i, value, s / kPageTokens == own)
                                                   : plain(kv, table, s, i, value);
        (value ? rows.values : rows.keys).push_back(x);
      }
    }
  }
  return rows;
}

// The mean of `count` rows of [.., D] from `first` on, behind the last row.
void append_mean(std::vector<double>& rows, int64_t first, int64_t count, int64_t d) {
  for (int64_t i = 0; i < d; ++i) {
    double sum = 0.0;
    for (int64_t s = first; s < first + count; ++s) sum += rows[size_t(s * d + i)];
    rows.push_back(sum / double(count));
  }
}

// What the query at `position` reads: keys, and with mean correction row kv_len + j for block j.
std::vector<Seen> seen_keys(const AttentionArgs& args,
                            const PagedMask* mask,
                            const BatchShape& shape,
                            int64_t b,
                            int64_t head,
                            int64_t position) {
  std::vector<Seen> seen;
  for (int64_t s = args.window > 0 ? std::max<int64_t>(0, position + 1 - args.window) : 0;
       s <= position; ++s)
    if (lists(mask, shape, b, head, args.heads, position, s)) seen.push_back({s});
  if (!is_masked(mask, shape, b) || !mask->mean_correction) return seen;
  const int64_t size = mask->blocks.block_size, first_row = position / kQueryBlock * kQueryBlock;
  for (int64_t j = 0; (j + 1) * size <= first_row; ++j) {
    const bool inside = args.window == 0 || j * size > first_row + kQueryBlock - 1 - args.window;
    if (inside && !lists(mask, shape, b, head, args.heads, position, j * size))
      seen.push_back({shape.kv_lens[b] + j, std::log(double(size))});
  }
  return seen;
}

}  // namespace

void paged_attention_ref(const AttentionArgs& args,
                         const BatchShape& shape,
                         const PagedKv& kv,
                         const PagedMask* mask) {
  const int64_t group = args.heads / kv.kv_heads, d = kv.head_dim;
  for (int64_t b = 0; b < shape.batch; ++b) {
    const int64_t tokens = shape.cu_seqlens[b + 1] - shape.cu_seqlens[b];
    const int64_t kv_len = shape.kv_lens[b];
    const int64_t size = is_masked(mask, shape, b) ? mask->blocks.block_size : kv_len + 1;
    for (int64_t g = 0; g < kv.kv_heads; ++g) {
      Cached rows;
      int64_t own = -1;
      for (int64_t row = 0; row < tokens * group; ++row) {
        const int64_t t = row / group, head = g * group + row % group;
        const int64_t position = kv_len - tokens + t;
        if (position / kPageTokens != own) {
          own = position / kPageTokens;
          rows = rows_for(args, shape, kv, b, g, own);
          for (int64_t j = 0; (j + 1) * size <= kv_len; ++j) {
            append_mean(rows.keys, j * size, size, d);
            append_mean(rows.values, j * size, size, d);
          }
        }
        const std::vector<Seen> seen = seen_keys(args, mask, shape, b, head, position);
        const int64_t token = shape.cu_seqlens[b] + t;
        const double lse =
            attend_row(args.q + token * args.ldq + head * d, rows.keys, rows.values, seen, d,
                       double(args.scale), args.out + token * args.ldo + head * d);
        if (args.lse != nullptr) args.lse[token * args.heads + head] = float(lse);
      }
    }
  }
}

}  // namespace longspur::kernels::attention
