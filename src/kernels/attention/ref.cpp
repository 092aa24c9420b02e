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

// Of a page in NVFP4 or, where that is not full or the first, of its quarters in bf16.
double cached_nvfp4(const PagedKv& kv,
                    const int32_t* row,
                    int64_t kv_len,
                    int64_t position,
                    int64_t i,
                    bool value) {
  const int64_t block = position / kPageTokens, slot = position % kPageTokens, d = kv.head_dim;
  const int64_t bytes = page_bytes(kv.type, d);
  if (block == 0 || block == kv_len / kPageTokens) {
    const Bf16Quarters quarters =
        bf16_quarters(kv.pool, bytes, row + kv.max_blocks - kSideBlocks, block == 0);
    const int64_t at =
        value ? (slot / 2 * d + i) * 2 + slot % 2 : (i / 2 * kPageTokens + slot) * 2 + i % 2;
    const int64_t quarter = kPageTokens * d / 2;  // elements
    const auto* half = quarters[size_t((value ? 2 : 0) + at / quarter)];
    return bf16_to_float(reinterpret_cast<const uint16_t*>(half)[at % quarter]);
  }
  const Nvfp4Page page{kv.pool + int64_t(row[block]) * bytes, d};
  const uint32_t byte =
      value ? page.value_codes()[slot / 2 * d + i] : page.key_codes()[i / 2 * kPageTokens + slot];
  const uint32_t scale = value ? page.value_scales()[slot * (d / 16) + i / 16]
                               : page.key_scales()[i / 16 * kPageTokens + slot];
  const uint32_t code = byte >> ((value ? slot : i) % 2 * 4) & 15;
  return std::ldexp(double(nvfp4::e2m1_decode(code)) * double(nvfp4::e4m3_decode(scale)),
                    page.exponents()[value ? 1 : 0]);
}

// Element i of the key or value of `position`, whatever the page's layout.
double cached(const PagedKv& kv,
              int64_t kv_len,
              int64_t b,
              int64_t head,
              int64_t position,
              int64_t i,
              bool value) {
  const int32_t* row = kv.block_table + (b * kv.kv_heads + head) * kv.max_blocks;
  if (kv.type == KvType::kNVFP4) return cached_nvfp4(kv, row, kv_len, position, i, value);
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
    for (int64_t g = 0; g < kv.kv_heads && tokens > 0; ++g) {
      std::vector<double> keys, values;
      for (int64_t s = 0; s < kv_len; ++s) {
        for (int64_t i = 0; i < d; ++i) {
          keys.push_back(cached(kv, kv_len, b, g, s, i, false));
          values.push_back(cached(kv, kv_len, b, g, s, i, true));
        }
      }
      const int64_t size = is_masked(mask, shape, b) ? mask->blocks.block_size : kv_len + 1;
      for (int64_t j = 0; (j + 1) * size <= kv_len; ++j) {
        append_mean(keys, j * size, size, d);
        append_mean(values, j * size, size, d);
      }
      for (int64_t row = 0; row < tokens * group; ++row) {
        const int64_t t = row / group, head = g * group + row % group;
        const std::vector<Seen> seen = seen_keys(args, mask, shape, b, head, kv_len - tokens + t);
        const int64_t token = shape.cu_seqlens[b] + t;
        const double lse = attend_row(args.q + token * args.ldq + head * d, keys, values, seen, d,
                                      double(args.scale), args.out + token * args.ldo + head * d);
        if (args.lse != nullptr) args.lse[token * args.heads + head] = float(lse);
      }
    }
  }
}

}  // namespace longspur::kernels::attention
