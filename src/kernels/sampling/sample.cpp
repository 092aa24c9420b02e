// See api.h. One pass finds the maximum (greedy ends there); filters work on the few candidates
// that can survive them; only plain temperature sampling and top-p need exp over the whole
// vocabulary.
#include <algorithm>
#include <cmath>
#include <limits>

#include "base/error.h"
#include "base/shape.h"
#include "kernels/sampling/api.h"
#include "kernels/sampling/checks.h"
#include "kernels/sampling/penalties.h"
#include "kernels/sampling/select.h"
#include "kernels/sampling/simd.h"

namespace longspur::kernels::sampling {

namespace {

using namespace detail;

double uniform(const SamplingView& p) { return double(draw_bits(p)) * 0x1p-53; }

// The largest logit; fills workspace.block_max.
float scan(const float* x, int64_t n, Workspace& workspace) {
  workspace.block_max.resize(size_t(ceil_div(n, kBlock)));
  require(block_maxima(x, n, workspace.block_max.data()), "sampling: found a NaN logit");
  const float max = *std::max_element(workspace.block_max.begin(), workspace.block_max.end());
  require(max < std::numeric_limits<float>::infinity(), "sampling: found a logit of +inf");
  require(max > -std::numeric_limits<float>::infinity(),
          "sampling: found every token banned (-inf), expected at least one allowed");
  return max;
}

double weigh_all(const float* x, int64_t n, float max, float scale, Workspace& workspace) {
  workspace.weights.resize(size_t(n));
  workspace.block_sum.resize(size_t(ceil_div(n, kBlock)));
  return exp_weights(x, n, max, scale, workspace.weights.data(), workspace.block_sum.data());
}

void weigh(std::vector<Candidate>& candidates, float max, float scale) {
  for (Candidate& c : candidates) c.weight = std::exp((c.logit - max) * scale);
}

double sum_weights(const std::vector<Candidate>& candidates) {
  double sum = 0.0;
  for (const Candidate& c : candidates) sum += double(c.weight);
  return sum;
}

// Fills workspace.candidates with what survives top-k, top-p and min-p, by rising id.
void filter(const float* x, const SampleArgs& args, float max, Workspace& workspace) {
  const SamplingView& p = args.params;
  const int64_t n = args.vocab;
  const float scale = float(1.0 / p.temperature);
  std::vector<Candidate>& candidates = workspace.candidates;
  // Below this a token's probability is under min_p times the largest.
  const double floor =
      p.min_p > 0.0 ? double(max) + p.temperature * std::log(p.min_p) : -double(INFINITY);
  if (p.top_k > 0 && p.top_k < n) {
    top_k(x, n, workspace.block_max, p.top_k, workspace.block_order, candidates);
    std::sort(candidates.begin(), candidates.end(),
              [](const Candidate& a, const Candidate& b) { return a.id < b.id; });
    weigh(candidates, max, scale);
    if (p.top_p < 1.0) nucleus(candidates, p.top_p * sum_weights(candidates), workspace.scratch);
  } else if (p.top_p < 1.0) {
    const double total = weigh_all(x, n, max, scale, workspace);
    // Tokens lighter than (1 - p) * total / n weigh less than (1 - p) * total together, so none of
    // them is in the nucleus; half of that leaves room for rounding.
    const double light = 0.5 * (1.0 - p.top_p) * total / double(n);
    const double bound = double(max) + p.temperature * std::log(std::min(light, 1.0));
    collect(x, n, workspace.block_max, float(bound), candidates);
    for (Candidate& c : candidates) c.weight = workspace.weights[size_t(c.id)];
    nucleus(candidates, p.top_p * total, workspace.scratch);
  } else {
    collect(x, n, workspace.block_max, std::nextafter(float(floor), -INFINITY), candidates);
    weigh(candidates, max, scale);
  }
  std::erase_if(candidates, [&](const Candidate& c) { return double(c.logit) < floor; });
}

// Candidates by rising id.
int32_t draw_candidate(const std::vector<Candidate>& candidates, double u) {
  double left = u * sum_weights(candidates);
  int32_t token = candidates.front().id;
  for (const Candidate& c : candidates) {
    if (c.weight <= 0.0f) continue;
    token = c.id;
    left -= double(c.weight);
    if (left < 0.0) break;
  }
  return token;
}

int32_t draw_any(const Workspace& workspace, double total, double u) {
  double left = u * total;
  const auto& sums = workspace.block_sum;
  size_t block = 0;
  size_t last = 0;  // the last block with any weight, in case rounding leaves `left` at the end
  for (; block < sums.size(); ++block) {
    if (sums[block] > 0.0) last = block;
    if (left < sums[block]) break;
    left -= sums[block];
  }
  if (block == sums.size()) {
    block = last;
    left = INFINITY;
  }
  const size_t begin = block * size_t(kBlock);
  const size_t end = std::min(workspace.weights.size(), begin + size_t(kBlock));
  int32_t token = int32_t(begin);
  for (size_t i = begin; i < end; ++i) {
    if (workspace.weights[i] <= 0.0f) continue;
    token = int32_t(i);
    left -= double(workspace.weights[i]);
    if (left < 0.0) break;
  }
  return token;
}

int32_t choose(const float* x, const SampleArgs& args, float max, Workspace& workspace) {
  const SamplingView& p = args.params;
  if (p.temperature < kGreedyTemperature || p.top_k == 1)
    return first_max(x, args.vocab, workspace.block_max);
  const bool filtered = (p.top_k > 0 && p.top_k < args.vocab) || p.top_p < 1.0 || p.min_p > 0.0;
  if (filtered) {
    filter(x, args, max, workspace);
    return draw_candidate(workspace.candidates, uniform(p));
  }
  const double total = weigh_all(x, args.vocab, max, float(1.0 / p.temperature), workspace);
  return draw_any(workspace, total, uniform(p));
}

// Needs workspace.block_max of the raw logits.
void fill_logprobs(const SampleArgs& args, float max, Workspace& workspace, SampleResult& result) {
  const double total = weigh_all(args.logits, args.vocab, max, 1.0f, workspace);
  const double log_total = double(max) + std::log(total);
  result.logprob = float(double(args.logits[result.token]) - log_total);
  const int64_t k = std::min(args.logprobs_k, args.vocab);
  if (k == 0) return;
  top_k(args.logits, args.vocab, workspace.block_max, k, workspace.block_order,
        workspace.candidates);
  std::sort(workspace.candidates.begin(), workspace.candidates.end(), better);
  for (const Candidate& c : workspace.candidates)
    result.top.emplace_back(c.id, float(double(c.logit) - log_total));
}

}  // namespace

SampleResult sample(const SampleArgs& args, Workspace& workspace) {
  check_params(args);
  require(args.logits != nullptr, "sampling: found no logits");
  const float raw_max = scan(args.logits, args.vocab, workspace);
  SampleResult result;
  if (keeps_logits(args.params)) {
    result.token = choose(args.logits, args, raw_max, workspace);
    if (args.logprobs_k >= 0) fill_logprobs(args, raw_max, workspace, result);
    return result;
  }
  workspace.logits.assign(args.logits, args.logits + args.vocab);
  if (int64_t(workspace.counts.size()) < args.vocab) workspace.counts.assign(size_t(args.vocab), 0);
  adjust_logits(args, workspace.logits, workspace.counts);
  const float max = scan(workspace.logits.data(), args.vocab, workspace);
  result.token = choose(workspace.logits.data(), args, max, workspace);
  if (args.logprobs_k >= 0) {
    scan(args.logits, args.vocab, workspace);  // block maxima of the raw logits again
    fill_logprobs(args, raw_max, workspace, result);
  }
  return result;
}

}  // namespace longspur::kernels::sampling
