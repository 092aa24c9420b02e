// How the importance of a block of keys to a block of queries is estimated: a weighted sum of
// terms, each a share of attention mass per key block that adds up to 1 over a row.
//
// n queries, m keys of one sequence and head, query r at position p(r) = m - n + r. Query block I
// is rows 128 I .. min(n, 128 I + 128) - 1; key block J is keys B J .. (B = 64 or 128), cut at m.
// `causal` hides keys after the position a row stands at; every softmax below is fp32 over what is
// left. A row without any key counts for nothing; a term without any live row is 0 everywhere.
//
// antidiagonal:S  (XAttention, Xu et al., 2025, section 2) groups of S tokens, r of queries and c
// of
//                 keys; Z[r, c] = sum_{i < S} q[rS + S-1-i] . k[cS + i] * scale / S; tokens that do
//                 not exist are zero. Causal: c is seen when cS <= p(last existing query of r).
//                 Softmax over c; T[I, J] = mean over the live r of I of the probability in J's
//                 groups.
// diagonal:S      the same with q[rS + i] . k[cS + i].
// pooled:G        the mean of the existing queries of each group of G at the last one's position
//                 against every exact key, logit * scale; T as a mean over the groups of I. A group
//                 of more than 128 covers several blocks, each of which takes its probabilities up
//                 to the block's own last visible key block, renormalised. Norm bias: the logit
//                 gets + 1/4 * (mean over the D channels of the variance of the group's queries) *
//                 |k|^2 * scale^2 (with scale = 1/sqrt(D) this is sigma^2 |k|^2 / (4 D): half of
//                 the second-order term of log E exp(q.k scale)). On by default.
// sampled:G       the exact query in the middle of each group of G (row G/2 of it, or the last that
//                 exists) at its own position; T as a mean over the groups of I. G <= 128.
// outlier         the query of I farthest (L2) from the mean of I's queries, lowest row on ties.
// mean            every query against the mean of each key block's existing keys, logit * scale; a
//                 block is seen when its first key is; mean over the rows of I.
// block_mean      the mean query of I at I's last position against the mean keys.
//
// (Block means: FlashPrefill; pooled means of both: SpargeAttn, Zhang et al., 2025.)
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace longspur::kernels::xattn {

enum class Term : int32_t {
  kAntidiagonal,
  kDiagonal,
  kPooled,
  kSampled,
  kOutlier,
  kMean,
  kBlockMean
};

struct EstimatorTerm {
  Term term = Term::kAntidiagonal;
  int64_t size = 16;      // S or G; 128 for terms that have none
  double weight = 1.0;    // > 0; weights are divided by their sum
  bool norm_bias = true;  // kPooled
};
inline constexpr int kMaxTerms = 8;

struct Estimator {
  std::vector<EstimatorTerm> terms;  // 1 to kMaxTerms
};

// "pooled:128+sampled:128+mean", with weights "0.5*pooled:128+0.25*sampled:64+0.25*mean", without
// the norm bias "pooled_plain:128". A stride or group left out is `stride` for antidiagonal and
// diagonal, 16 for sampled and 128 for pooled. "default": default_estimator(key length).
// S is 4, 8, 16, 32 or 64 and divides the key block; G a power of two from 1 to 128, for pooled to
// 1024. Throws UsageError naming the part, what was found and what was expected.
Estimator parse_estimator(std::string_view text,
                          int64_t stride,
                          int64_t block_size,
                          int64_t longest_k);
std::string to_string(const Estimator& estimator);

// By recall per millisecond on recorded queries and keys: docs/xattention.md.
Estimator default_estimator(int64_t longest_k);

}  // namespace longspur::kernels::xattn
