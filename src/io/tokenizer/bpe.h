// Byte-pair encoding: a word starts as a row of symbols, and the neighbouring pair with the lowest
// rank is joined, the leftmost first among equals, until no pair has a rank. Short words take a
// scan for the lowest rank; from kShortWord symbols on, a heap over a linked list: n log n.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace longspur::io {

struct Merge {
  int32_t left;
  int32_t right;
  int32_t result;
  uint32_t rank;
};

// (left, right) -> rank and result; open addressing.
class MergeTable {
 public:
  static constexpr uint32_t kNoRank = 0xffffffff;
  struct Found {
    uint32_t rank;
    int32_t result;
  };

  // The last of several merges of one pair counts, as in `tokenizers`.
  explicit MergeTable(std::span<const Merge> merges = {});

  Found find(int32_t left, int32_t right) const {
    const uint64_t key = make_key(left, right);
    for (size_t at = hash(key);; at = (at + 1) & mask_) {
      const Entry& entry = entries_[at];
      if (entry.key == key || entry.rank == kNoRank) return {entry.rank, entry.result};
    }
  }

 private:
  struct Entry {
    uint64_t key = 0;
    uint32_t rank = kNoRank;  // kNoRank: free
    int32_t result = -1;
  };

  static uint64_t make_key(int32_t left, int32_t right) {
    return uint64_t(uint32_t(left)) << 32 | uint32_t(right);
  }
  size_t hash(uint64_t key) const {
    key = (key ^ (key >> 32)) * 0xd6e8feb86659fd93u;
    return size_t(key ^ (key >> 32)) & mask_;
  }

  std::vector<Entry> entries_;
  size_t mask_ = 0;
};

// Buffers that one thread uses again for each word.
struct BpeScratch {
  std::vector<int32_t> symbols;
  std::vector<uint32_t> ranks;    // of the pair that begins at each symbol
  std::vector<int32_t> previous;  // linked list of the long form
  std::vector<int32_t> next;
  std::vector<uint64_t> heap;  // rank << 32 | position
};

inline constexpr size_t kShortWord = 96;

// Joins scratch.symbols in place until nothing joins.
void merge_symbols(const MergeTable& table, BpeScratch& scratch);

}  // namespace longspur::io
