// Reference: plain loops in double over the keys and values as the pages hold them.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "base/half.h"
#include "kernels/attention/paged.h"
#include "kernels/attention/tile.h"

namespace longspur::kernels::attention {

namespace {

// Element i of the key or value of `position`, whatever the page's layout.
double cached(const PagedKv& kv, int64_t b, int64_t head, int64_t position, int64_t i, bool value) {
  const int32_t id =
      kv.block_table[(b * kv.kv_heads + head) * kv.max_blocks + position / kPageTokens];
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

}  // namespace

void paged_attention_ref(const AttentionArgs& args, const BatchShape& shape, const PagedKv& kv) {
  const int64_t group = args.heads / kv.kv_heads, d = kv.head_dim;
  for (int64_t b = 0; b < shape.batch; ++b) {
    const int64_t tokens = shape.cu_seqlens[b + 1] - shape.cu_seqlens[b];
    for (int64_t t = 0; t < tokens; ++t) {
      const int64_t position = shape.kv_lens[b] - tokens + t;
      const int64_t first = args.window > 0 ? std::max<int64_t>(0, position + 1 - args.window) : 0;
      for (int64_t h = 0; h < args.heads; ++h) {
        const float* q = args.q + (shape.cu_seqlens[b] + t) * args.ldq + h * d;
        std::vector<double> scores, out(static_cast<size_t>(d), 0.0);
        double max = -HUGE_VAL, sum = 0.0;
        for (int64_t s = first; s <= position; ++s) {
          double dot = 0.0;
          for (int64_t i = 0; i < d; ++i)
            dot += double(q[i]) * cached(kv, b, h / group, s, i, false);
          scores.push_back(dot * args.scale);
          max = std::max(max, scores.back());
        }
        for (int64_t s = first; s <= position; ++s) {
          const double weight = std::exp(scores[size_t(s - first)] - max);
          sum += weight;
          for (int64_t i = 0; i < d; ++i)
            out[size_t(i)] += weight * cached(kv, b, h / group, s, i, true);
        }
        float* row = args.out + (shape.cu_seqlens[b] + t) * args.ldo + h * d;
        for (int64_t i = 0; i < d; ++i) row[i] = float(out[size_t(i)] / sum);
      }
    }
  }
}

}  // namespace longspur::kernels::attention
