// Selection without sorting: the cutoff score is found by bisection over the bits of scores.
#include <algorithm>
#include <bit>
#include <cstring>

#include "kernels/xattn/api.h"
#include "kernels/xattn/select_math.h"

namespace longspur::kernels::xattn {

namespace {

uint32_t key_at(const float* scores, int64_t j) {
  return score_key(std::bit_cast<uint32_t>(scores[j]));
}

// One row while it is selected.
struct Row {
  const float* scores;
  int64_t end;  // visible blocks
  ForcedBlocks forced;
  uint32_t max_key = 0;
  uint32_t* words;

  void keep(int64_t j) const { words[j / 32] |= 1u << (j % 32); }
  uint64_t units(int64_t j) const { return score_units(key_at(scores, j), max_key); }
};

RowStats keep_all(const Row& row) {
  for (int64_t j = 0; j < row.end; ++j) row.keep(j);
  return {int32_t(row.end), int32_t(row.end), 1.0f};
}

template <class Keep>
RowStats keep_where(const Row& row, Keep keep) {
  uint64_t total = 0, kept_units = 0;
  int32_t kept = 0;
  for (int64_t j = 0; j < row.end; ++j) {
    const uint64_t units = row.units(j);
    total += units;
    if (!is_forced(row.forced, j) && !keep(j)) continue;
    row.keep(j);
    kept_units += units;
    ++kept;
  }
  const float share = total == 0 ? 1.0f : float(double(kept_units) / double(total));
  return {kept, int32_t(row.end), share};
}

// The blocks that are not forced, some at a time: what a step of the bisection reads.
struct FreeBlocks {
  static constexpr int64_t kMost = 1024;
  uint32_t keys[kMost];
  uint64_t units[kMost];
  int64_t count = 0;

  // Blocks from `begin` on; returns where the next ones begin.
  int64_t fill(const Row& row, int64_t begin) {
    count = 0;
    for (; begin < row.end && count < kMost; ++begin) {
      if (is_forced(row.forced, begin)) continue;
      keys[count] = key_at(row.scores, begin);
      units[count++] = row.units(begin);
    }
    return begin;
  }
  uint64_t above(uint32_t key) const {
    uint64_t sum = 0;
    for (int64_t j = 0; j < count; ++j) sum += keys[j] > key ? units[j] : 0;
    return sum;
  }
};

// Units of the free blocks whose score is above `key`. `first` holds those before block `filled`.
uint64_t units_above(const Row& row, const FreeBlocks& first, int64_t filled, uint32_t key) {
  uint64_t sum = first.above(key);
  for (int64_t begin = filled; begin < row.end;) {
    FreeBlocks others;
    begin = others.fill(row, begin);
    sum += others.above(key);
  }
  return sum;
}

RowStats keep_share(const Row& row, uint32_t threshold) {
  if (threshold >= kOneBits)
    return keep_where(row, [&](int64_t j) { return key_at(row.scores, j) > 0; });
  uint64_t total = 0, forced = 0;
  for (int64_t j = 0; j < row.end; ++j) {
    total += row.units(j);
    forced += is_forced(row.forced, j) ? row.units(j) : 0;
  }
  const uint64_t required = required_units(threshold, total);
  if (forced >= required) return keep_where(row, [](int64_t) { return false; });
  const uint64_t need = required - forced;
  // The smallest key above which the free blocks hold less than is needed: blocks above it are kept
  // and blocks below it are not; of those at it, the first ones until the sum is reached.
  FreeBlocks first;
  const int64_t filled = first.fill(row, 0);
  uint32_t low = 0, high = row.max_key;
  while (low < high) {
    const uint32_t middle = low + (high - low) / 2;
    if (units_above(row, first, filled, middle) < need)
      high = middle;
    else
      low = middle + 1;
  }
  uint64_t held = units_above(row, first, filled, low);
  return keep_where(row, [&](int64_t j) {
    const uint32_t key = key_at(row.scores, j);
    if (key != low) return key > low;
    if (held >= need) return false;
    held += row.units(j);
    return true;
  });
}

}  // namespace

RowStats select_row(const float* scores,
                    float threshold,
                    int64_t i,
                    int64_t n,
                    int64_t m,
                    const SelectOptions& options,
                    uint32_t* words,
                    int64_t row_words) {
  std::fill_n(words, row_words, 0u);
  Row row{scores, visible_blocks(i, n, m, options.block_size, options.causal).end,
          forced_blocks(i, n, m, options), 0, words};
  const auto threshold_bits = std::bit_cast<uint32_t>(threshold);
  for (int64_t j = 0; j < row.end; ++j) row.max_key = std::max(row.max_key, key_at(scores, j));
  if (!is_score(row.max_key) || is_nan_bits(threshold_bits)) return keep_all(row);
  if (options.rule == Rule::kOfMax) {
    const auto largest = std::bit_cast<float>(row.max_key);
    return keep_where(row, [&](int64_t j) { return at_least(scores[j], threshold, largest); });
  }
  return keep_share(row, threshold_key(threshold_bits));
}

void select(const SelectArgs& args, int64_t begin, int64_t end) {
  const int64_t row_words = BlockMask::words_of(args.key_blocks);
  for (int64_t r = begin; r < end; ++r) {
    const int64_t i = r % args.query_blocks, head = r / args.query_blocks % args.heads;
    const int64_t b = r / args.query_blocks / args.heads;
    const int64_t n = args.cu_seqlens_q[b + 1] - args.cu_seqlens_q[b];
    const int64_t m = args.cu_seqlens_k[b + 1] - args.cu_seqlens_k[b];
    uint32_t* words = args.words + r * row_words;
    RowStats stats;
    if (i * kQueryBlock < n) {
      stats = select_row(args.scores + r * args.key_blocks, args.threshold[head], i, n, m,
                         args.options, words, row_words);
    } else {
      std::fill_n(words, row_words, 0u);
    }
    if (args.stats != nullptr) args.stats[r] = stats;
  }
}

}  // namespace longspur::kernels::xattn
