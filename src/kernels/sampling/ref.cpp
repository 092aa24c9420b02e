// The reference of sample(): fp64, a full sort, one obvious step after the other. It shares nothing
// with the fast path but the random generator.
#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <set>

#include "base/error.h"
#include "base/rng.h"
#include "kernels/sampling/api.h"

namespace longspur::kernels::sampling {

namespace {

struct Entry {
  int32_t id;
  double logit;
  double p = 0.0;
};

std::vector<Entry> sorted(std::vector<Entry> entries) {
  std::stable_sort(entries.begin(), entries.end(),
                   [](const Entry& a, const Entry& b) { return a.logit > b.logit; });
  return entries;
}

void normalise(std::vector<Entry>& entries, double temperature) {
  double total = 0.0;
  const double max = entries.front().logit;
  for (Entry& e : entries) total += e.p = std::exp((e.logit - max) / temperature);
  for (Entry& e : entries) e.p /= total;
}

// Logits after penalties are rounded to fp32, as the fast path keeps them: ties must be the same.
std::vector<Entry> adjusted(const SampleArgs& args) {
  const SamplingView& params = args.params;
  std::vector<float> x(args.logits, args.logits + args.vocab);
  std::set<int32_t> seen(args.prompt.begin(), args.prompt.end());
  seen.insert(args.output.begin(), args.output.end());
  const float r = float(params.repetition_penalty);
  for (const int32_t id : seen)
    x[size_t(id)] = x[size_t(id)] < 0 ? x[size_t(id)] * r : x[size_t(id)] / r;
  std::map<int32_t, int> counts;
  for (const int32_t id : args.output) ++counts[id];
  for (const auto& [id, count] : counts) {
    const double penalty = params.frequency_penalty * count + params.presence_penalty;
    x[size_t(id)] = float(double(x[size_t(id)]) - penalty);
  }
  for (const auto& [id, bias] : params.logit_bias)
    x[size_t(id)] = float(double(x[size_t(id)]) + bias);
  for (const int32_t id : params.banned) x[size_t(id)] = -std::numeric_limits<float>::infinity();
  std::vector<Entry> entries;
  for (size_t i = 0; i < x.size(); ++i) entries.push_back({int32_t(i), double(x[i])});
  return entries;
}

// Keeps a prefix of the sorted entries; returns the distance to another cut.
double apply_filters(std::vector<Entry>& entries, const SamplingView& params) {
  double margin = 1.0;
  if (params.top_k > 0 && size_t(params.top_k) < entries.size())
    entries.resize(size_t(params.top_k));
  normalise(entries, params.temperature);
  if (params.top_p < 1.0) {
    double before = 0.0;
    size_t keep = 0;
    while (keep < entries.size() && (keep == 0 || before < params.top_p)) {
      if (keep > 0) margin = std::min(margin, std::abs(before - params.top_p));
      before += entries[keep++].p;
    }
    margin = std::min(margin, std::abs(before - params.top_p));
    entries.resize(keep);
  }
  const double floor = params.min_p * entries.front().p;
  if (params.min_p > 0.0) {
    for (const Entry& e : entries)
      if (e.p > 0.0) margin = std::min(margin, std::abs(e.p - floor) / std::max(e.p, floor));
    std::erase_if(entries, [&](const Entry& e) { return e.p < floor; });
  }
  return margin;
}

}  // namespace

SampleResult sample_ref(const SampleArgs& args, double* margin) {
  const SamplingView& params = args.params;
  SampleResult result;
  std::vector<Entry> entries = sorted(adjusted(args));
  double distance = 1.0;
  if (params.temperature < kGreedyTemperature) {
    result.token = entries.front().id;
  } else {
    distance = apply_filters(entries, params);
    normalise(entries, params.temperature);
    std::sort(entries.begin(), entries.end(),
              [](const Entry& a, const Entry& b) { return a.id < b.id; });
    const auto bits = philox4x32(params.seed, params.stream, params.position);
    const double u = std::ldexp(double((uint64_t(bits[0]) << 32 | bits[1]) >> 11), -53);
    double sum = 0.0;
    result.token = -1;
    for (const Entry& e : entries) {
      sum += e.p;
      if (e.p > 0.0) distance = std::min(distance, std::abs(sum - u));
      if (sum > u) {
        result.token = e.id;
        break;
      }
    }
    if (result.token < 0) result.token = entries.back().id;  // rounding: the sum ended below u
  }
  if (margin != nullptr) *margin = distance;
  if (args.logprobs_k < 0) return result;
  std::vector<Entry> raw;
  for (int64_t i = 0; i < args.vocab; ++i) raw.push_back({int32_t(i), double(args.logits[i])});
  raw = sorted(std::move(raw));
  normalise(raw, 1.0);
  for (size_t i = 0; i < raw.size(); ++i) {
    const float logprob = float(std::log(raw[i].p));
    if (raw[i].id == result.token) result.logprob = logprob;
    if (int64_t(i) < args.logprobs_k) result.top.emplace_back(raw[i].id, logprob);
  }
  return result;
}

}  // namespace longspur::kernels::sampling
