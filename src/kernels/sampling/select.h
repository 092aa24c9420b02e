// Partial selection over the vocabulary: the k best, everything above a bound, the nucleus. Nothing
// sorts more than it keeps.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/sampling/api.h"

namespace longspur::kernels::sampling::detail {

// Falling logit, ties by rising id: the one order of this folder.
inline bool better(const Candidate& a, const Candidate& b) {
  return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
}

// The first index of the largest value. block_max from block_maxima().
int32_t first_max(const float* x, int64_t n, std::span<const float> block_max);

// All ids with x >= bound, by rising id, weight 0.
void collect(const float* x,
             int64_t n,
             std::span<const float> block_max,
             float bound,
             std::vector<Candidate>& out);

// The min(k, n) best, in no particular order, weight 0. order is scratch.
void top_k(const float* x,
           int64_t n,
           std::span<const float> block_max,
           int64_t k,
           std::vector<float>& order,
           std::vector<Candidate>& out);

// Cuts candidates down to the shortest prefix (in the order of better()) whose weights reach mass;
// at least one stays, and those that stay keep their order. scratch is overwritten.
void nucleus(std::vector<Candidate>& candidates, double mass, std::vector<Candidate>& scratch);

}  // namespace longspur::kernels::sampling::detail
