// Reference of selection: scores are sorted and added up in order.
#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "base/error.h"
#include "kernels/xattn/api.h"
#include "kernels/xattn/select_math.h"

namespace longspur::kernels::xattn {

namespace {

__extension__ using Wide = unsigned __int128;

// sum < threshold * total, exactly; threshold = mantissa * 2^(exponent - 24).
bool below(uint64_t sum, double threshold, uint64_t total) {
  int exponent = 0;
  const auto mantissa = uint64_t(std::ldexp(std::frexp(threshold, &exponent), 24));
  const Wide product = Wide(mantissa) * total;
  const int shift = 24 - exponent;  // 24 or more, as threshold < 1
  if (shift >= 64) return sum == 0 && product > 0;
  return (Wide(sum) << shift) < product;
}

struct RefRow {
  std::vector<float> scores;  // of the visible blocks
  std::vector<uint64_t> units;
  std::vector<bool> forced, kept;
};

RefRow make_row(
    const float* scores, int64_t i, int64_t n, int64_t m, const SelectOptions& options) {
  const int64_t end = visible_blocks(i, n, m, options.block_size, options.causal).end;
  const ForcedBlocks forced = forced_blocks(i, n, m, options);
  RefRow row;
  row.scores.assign(scores, scores + end);
  for (int64_t j = 0; j < end; ++j) row.forced.push_back(is_forced(forced, j));
  row.kept = row.forced;
  row.units.assign(size_t(end), 0);
  return row;
}

void keep_share(RefRow& row, float threshold) {
  uint64_t total = 0, sum = 0;
  for (size_t j = 0; j < row.units.size(); ++j) {
    total += row.units[j];
    if (row.forced[j]) sum += row.units[j];
  }
  std::vector<size_t> order(row.scores.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return row.scores[a] > row.scores[b]; });
  for (const size_t j : order) {
    if (row.forced[j]) continue;
    const bool keep = threshold >= 1.0f ? row.scores[j] > 0.0f
                                        : threshold > 0.0f && below(sum, double(threshold), total);
    if (!keep) return;
    row.kept[j] = true;
    sum += row.units[j];
  }
}

RowStats select_row_ref(RefRow& row, float threshold, Rule rule) {
  const auto count = int32_t(row.scores.size());
  const bool sound = std::all_of(row.scores.begin(), row.scores.end(),
                                 [](float x) { return std::isfinite(x) && x >= 0.0f; });
  if (!sound || std::isnan(threshold)) {
    row.kept.assign(row.kept.size(), true);
    return {count, count, 1.0f};
  }
  const float largest = count == 0 ? 0.0f : *std::max_element(row.scores.begin(), row.scores.end());
  for (size_t j = 0; largest > 0.0f && j < row.scores.size(); ++j)
    row.units[j] = uint64_t(std::ldexp(double(row.scores[j]), 39 - std::ilogb(largest)));
  if (rule == Rule::kShare) keep_share(row, threshold);
  RowStats stats{0, count, 1.0f};
  uint64_t kept = 0, total = 0;
  for (size_t j = 0; j < row.scores.size(); ++j) {
    if (rule == Rule::kOfMax && double(row.scores[j]) >= double(threshold) * double(largest))
      row.kept[j] = true;
    total += row.units[j];
    if (!row.kept[j]) continue;
    kept += row.units[j];
    ++stats.kept;
  }
  if (total > 0) stats.kept_share = float(double(kept) / double(total));
  return stats;
}

}  // namespace

void select_ref(const SelectArgs& args) {
  const int64_t row_words = BlockMask::words_of(args.key_blocks);
  const int64_t rows = args.batch * args.heads * args.query_blocks;
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t i = r % args.query_blocks, head = r / args.query_blocks % args.heads;
    const int64_t b = r / args.query_blocks / args.heads;
    const int64_t n = args.cu_seqlens_q[b + 1] - args.cu_seqlens_q[b];
    const int64_t m = args.cu_seqlens_k[b + 1] - args.cu_seqlens_k[b];
    uint32_t* words = args.words + r * row_words;
    std::fill_n(words, row_words, 0u);
    RowStats stats;
    if (i * kQueryBlock < n) {
      RefRow row = make_row(args.scores + r * args.key_blocks, i, n, m, args.options);
      stats = select_row_ref(row, args.threshold[head], args.options.rule);
      for (size_t j = 0; j < row.kept.size(); ++j)
        if (row.kept[j]) words[j / 32] |= 1u << (j % 32);
    }
    if (args.stats != nullptr) args.stats[r] = stats;
  }
}

}  // namespace longspur::kernels::xattn
