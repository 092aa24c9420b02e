#include "io/tokenizer/bpe.h"

#include <algorithm>
#include <bit>
#include <functional>

namespace longspur::io {

MergeTable::MergeTable(std::span<const Merge> merges)
    : entries_(std::bit_ceil(2 * merges.size() + 2)), mask_(entries_.size() - 1) {
  for (const Merge& merge : merges) {
    const uint64_t key = make_key(merge.left, merge.right);
    size_t at = hash(key);
    while (entries_[at].rank != kNoRank && entries_[at].key != key) at = (at + 1) & mask_;
    entries_[at] = {key, merge.rank, merge.result};
  }
}

namespace {

// Symbols stay contiguous; each join moves the tail down by one.
void merge_short(const MergeTable& table, BpeScratch& scratch) {
  auto& symbols = scratch.symbols;
  auto& ranks = scratch.ranks;
  size_t n = symbols.size();
  const auto rank_at = [&](size_t i) { return table.find(symbols[i], symbols[i + 1]).rank; };
  ranks.resize(n);
  for (size_t i = 0; i + 1 < n; ++i) ranks[i] = rank_at(i);
  while (n > 1) {
    const auto best = std::min_element(ranks.begin(), ranks.begin() + ptrdiff_t(n - 1));
    if (*best == MergeTable::kNoRank) break;
    const auto i = size_t(best - ranks.begin());
    symbols[i] = table.find(symbols[i], symbols[i + 1]).result;
    std::copy(symbols.begin() + ptrdiff_t(i + 2), symbols.begin() + ptrdiff_t(n),
              symbols.begin() + ptrdiff_t(i + 1));
    std::copy(ranks.begin() + ptrdiff_t(i + 2), ranks.begin() + ptrdiff_t(n),
              ranks.begin() + ptrdiff_t(i + 1));
    --n;
    if (i + 1 < n) ranks[i] = rank_at(i);
    if (i > 0) ranks[i - 1] = rank_at(i - 1);
  }
  symbols.resize(n);
}

// A joined-away symbol has next = kGone. An entry of the heap is stale, and skipped, when the pair
// at its position now has another rank.
class LongMerge {
 public:
  LongMerge(const MergeTable& table, BpeScratch& scratch) : table_(table), s_(scratch) {
    const size_t n = s_.symbols.size();
    s_.ranks.assign(n, MergeTable::kNoRank);
    s_.previous.resize(n);
    s_.next.resize(n);
    s_.heap.clear();
    for (size_t i = 0; i < n; ++i) {
      s_.previous[i] = int32_t(i) - 1;
      s_.next[i] = i + 1 < n ? int32_t(i) + 1 : kEnd;
    }
    for (size_t i = 0; i + 1 < n; ++i) {
      const uint32_t rank = table.find(s_.symbols[i], s_.symbols[i + 1]).rank;
      s_.ranks[i] = rank;
      if (rank != MergeTable::kNoRank) s_.heap.push_back(uint64_t(rank) << 32 | i);
    }
    std::make_heap(s_.heap.begin(), s_.heap.end(), std::greater<>());
  }

  void run() {
    while (!s_.heap.empty()) {
      std::pop_heap(s_.heap.begin(), s_.heap.end(), std::greater<>());
      const uint64_t entry = s_.heap.back();
      s_.heap.pop_back();
      const auto at = size_t(entry & 0xffffffff);
      if (s_.ranks[at] == uint32_t(entry >> 32)) join(at);
    }
    size_t count = 0;
    for (int32_t i = 0; i != kEnd; i = s_.next[size_t(i)])
      s_.symbols[count++] = s_.symbols[size_t(i)];
    s_.symbols.resize(count);
  }

 private:
  static constexpr int32_t kEnd = -1;

  void join(size_t at) {
    const auto right = size_t(s_.next[at]);
    s_.symbols[at] = table_.find(s_.symbols[at], s_.symbols[right]).result;
    s_.next[at] = s_.next[right];
    s_.ranks[right] = MergeTable::kNoRank;
    if (s_.next[at] != kEnd) s_.previous[size_t(s_.next[at])] = int32_t(at);
    update(at);
    if (s_.previous[at] != kEnd) update(size_t(s_.previous[at]));
  }

  void update(size_t at) {
    s_.ranks[at] = MergeTable::kNoRank;
    if (s_.next[at] == kEnd) return;
    const uint32_t rank = table_.find(s_.symbols[at], s_.symbols[size_t(s_.next[at])]).rank;
    s_.ranks[at] = rank;
    if (rank == MergeTable::kNoRank) return;
    s_.heap.push_back(uint64_t(rank) << 32 | at);
    std::push_heap(s_.heap.begin(), s_.heap.end(), std::greater<>());
  }

  const MergeTable& table_;
  BpeScratch& s_;
};

}  // namespace

void merge_symbols(const MergeTable& table, BpeScratch& scratch) {
  if (scratch.symbols.size() < 2) return;
  if (scratch.symbols.size() <= kShortWord) {
    merge_short(table, scratch);
  } else {
    LongMerge(table, scratch).run();
  }
}

}  // namespace longspur::io
