// See select.h. top_k: the k-th largest of the block maxima bounds the k-th largest logit from
// below, since k blocks have a logit at or above it; few logits pass that bound. nucleus:
// quickselect by weight, expected linear time.
#include "kernels/sampling/select.h"

#include <algorithm>
#include <array>
#include <functional>
#include <limits>

#include "base/error.h"
#include "kernels/sampling/simd.h"

namespace longspur::kernels::sampling::detail {

int32_t first_max(const float* x, int64_t n, std::span<const float> block_max) {
  const auto best = std::max_element(block_max.begin(), block_max.end());
  const int64_t begin = (best - block_max.begin()) * kBlock;
  const float* end = x + std::min(n, begin + kBlock);
  return int32_t(std::find(x + begin, end, *best) - x);
}

void collect(const float* x,
             int64_t n,
             std::span<const float> block_max,
             float bound,
             std::vector<Candidate>& out) {
  out.clear();
  for (size_t block = 0; block < block_max.size(); ++block) {
    if (!(block_max[block] >= bound)) continue;
    const int64_t begin = int64_t(block) * kBlock;
    for (int64_t i = begin; i < std::min(n, begin + kBlock); ++i)
      if (x[i] >= bound) out.push_back({x[i], int32_t(i), 0.0f});
  }
}

void top_k(const float* x,
           int64_t n,
           std::span<const float> block_max,
           int64_t k,
           std::vector<float>& order,
           std::vector<Candidate>& out) {
  float bound = -std::numeric_limits<float>::infinity();
  if (k <= int64_t(block_max.size())) {
    order.assign(block_max.begin(), block_max.end());
    std::nth_element(order.begin(), order.begin() + (k - 1), order.end(), std::greater<>());
    bound = order[size_t(k - 1)];
  }
  collect(x, n, block_max, bound, out);
  if (k >= int64_t(out.size())) return;
  std::nth_element(out.begin(), out.begin() + k, out.end(), better);
  out.resize(size_t(k));
}

namespace {

// Leaves in scratch the candidates of the one histogram bin (of logits) in which the weights,
// summed from the best on, reach mass; returns what is left of mass for that bin.
double crossing_bin(const std::vector<Candidate>& candidates,
                    double mass,
                    std::vector<Candidate>& scratch) {
  constexpr int kBins = 512;
  double high = double(candidates[0].logit), low = high;
  for (const Candidate& c : candidates) {
    high = std::max(high, double(c.logit));
    low = std::min(low, double(c.logit));
  }
  // Monotone in the logit, which is all that is needed of it.
  const double scale = high > low ? kBins / (high - low) : 0.0;
  const auto bin_of = [&](const Candidate& c) {
    return std::min(kBins - 1, int((high - double(c.logit)) * scale));
  };
  std::array<double, kBins> sums{};
  for (const Candidate& c : candidates) sums[size_t(bin_of(c))] += double(c.weight);
  int bin = 0;
  while (bin < kBins - 1 && sums[size_t(bin)] < mass) mass -= sums[size_t(bin++)];
  scratch.clear();
  for (const Candidate& c : candidates)
    if (bin_of(c) == bin) scratch.push_back(c);
  return mass;
}

// The last candidate of the nucleus of scratch, which is reordered.
Candidate last_kept(std::vector<Candidate>& scratch, double mass) {
  auto low = scratch.begin();
  auto high = scratch.end();
  while (high - low > 32) {
    const auto middle = low + (high - low) / 2;
    std::nth_element(low, middle, high, better);
    double sum = 0.0;
    for (auto it = low; it != middle; ++it) sum += double(it->weight);
    if (sum >= mass) {
      high = middle;
    } else {
      mass -= sum;
      low = middle;
    }
  }
  std::sort(low, high, better);
  while (high - low > 1 && mass > double(low->weight)) mass -= double((low++)->weight);
  return *low;
}

}  // namespace

void nucleus(std::vector<Candidate>& candidates, double mass, std::vector<Candidate>& scratch) {
  std::erase_if(candidates, [](const Candidate& c) { return c.weight <= 0.0f; });  // also -inf
  LONGSPUR_ASSERT(!candidates.empty());
  if (candidates.size() > 512) {
    mass = crossing_bin(candidates, mass, scratch);
    // Rounding can leave the mass unreached and the last bin empty: then everything is kept.
    if (scratch.empty()) return;
  } else {
    scratch = candidates;
  }
  const Candidate last = last_kept(scratch, mass);
  std::erase_if(candidates, [&](const Candidate& c) { return better(last, c); });
}

}  // namespace longspur::kernels::sampling::detail
