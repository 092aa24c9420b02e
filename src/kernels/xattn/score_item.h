// The scores of one query block, packed or paged: rows of queries are made from the terms of an
// estimator and meet blocks of keys. Private to this family.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "kernels/attention/score_tile.h"
#include "kernels/xattn/estimator.h"

namespace longspur::kernels::xattn {

// Query indices of a sequence count from where blocks and groups begin: from the first query of a
// call, or, over pages, from position 0.
struct ScoreItem {
  attention::ConstRows q;
  DType q_type = DType::kF32;
  int64_t q_begin = 0;       // row of q of the sequence's first query
  int64_t first = 0, n = 0;  // indices that exist: [first, first + n)
  int64_t offset = 0;        // index v stands at position v + offset
  int64_t m = 0;             // keys
  int64_t block = 0;         // indices kQueryBlock * block ..; at least one exists
  int64_t first_head = 0, heads = 0;
  attention::KeyBlocks exact;                           // a column a key
  std::array<attention::KeyBlocks, kMaxTerms> strided;  // by term: a column S keys
  attention::KeyBlocks means;                           // floats: a column the mean of a key block
  // Scores of head h are added to out + h * out_stride, times `factor`.
  float* out = nullptr;
  int64_t out_stride = 0;
  float factor = 1.0f;
  // Null, or where the exact rows' log-sum-exps go: of index v and head h at
  // row_lse[(v - first) * lse_stride + h].
  float* row_lse = nullptr;
  int64_t lse_stride = 0;
};

struct ScoreSetup {
  Estimator estimator;
  int64_t block_size = 128;
  double scale = 1.0;
  bool causal = true;
  int64_t head_dim = 0;
  bool pairs = false;  // words of exact and strided keys are pairs of bf16

  int64_t words() const { return pairs ? (head_dim + 1) / 2 : head_dim; }
};

inline bool is_strided(Term term) { return term == Term::kAntidiagonal || term == Term::kDiagonal; }
inline bool uses_means(Term term) { return term == Term::kMean || term == Term::kBlockMean; }
inline bool uses_exact_keys(Term term) { return !is_strided(term) && !uses_means(term); }

// Where the blocks of one KV head of a sequence with m keys lie, in bytes; a kind that no term uses
// takes none. Exact keys: only with pack_exact.
struct KeyLayout {
  KeyLayout(const ScoreSetup& setup, int64_t m, bool pack_exact);
  // Whether term t is strided and the first of its stride: terms of one stride share their keys.
  bool owns_keys(size_t t) const { return owner[t]; }
  // Strided keys and means of an item from their place on.
  void place(const ScoreSetup& setup, const std::byte* base, ScoreItem& item) const;

  bool has_exact = false, has_means = false;
  int64_t exact_bytes = 0, mean_bytes = 0;  // of a block
  int64_t means = 0;
  std::array<int64_t, kMaxTerms> strided{};
  std::array<bool, kMaxTerms> owner{};
  int64_t bytes = 0;
};

// Scratch of one thread, 64-byte aligned.
int64_t score_scratch_bytes(const ScoreSetup& setup, int64_t longest_k);
void score_item(const ScoreSetup& setup,
                const ScoreItem& item,
                int64_t longest_k,
                std::byte* scratch);

// `d` values as the words of a row or column.
void pack_words(const float* from, int64_t d, bool pairs, uint32_t* to);

}  // namespace longspur::kernels::xattn
