#include "kernels/sampling/cuda/pack.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "base/error.h"
#include "base/shape.h"
#include "kernels/sampling/checks.h"

namespace longspur::kernels::sampling::cuda {

namespace {

Range append(std::span<const int32_t> from, std::vector<int32_t>& to) {
  const auto begin = int32_t(to.size());
  to.insert(to.end(), from.begin(), from.end());
  return {begin, int32_t(to.size())};
}

// By rising id and, for one id, in the caller's order: each is rounded to fp32 in turn.
Range append(std::span<const std::pair<int32_t, double>> from, std::vector<Bias>& to) {
  const auto begin = std::ptrdiff_t(to.size());
  for (const auto& [id, value] : from) to.push_back({value, id, 0});
  std::stable_sort(to.begin() + begin, to.end(),
                   [](const Bias& a, const Bias& b) { return a.id < b.id; });
  return {int32_t(begin), int32_t(to.size())};
}

Row row_of(const SampleArgs& args, std::vector<int32_t>& ids, std::vector<Bias>& bias) {
  const SamplingView& p = args.params;
  Row row{};
  row.presence = p.presence_penalty;
  row.frequency = p.frequency_penalty;
  row.top_p = p.top_p;
  row.floor_offset =
      p.min_p > 0.0 ? p.temperature * std::log(p.min_p) : -std::numeric_limits<double>::infinity();
  row.draw = detail::draw_bits(p) << 11;
  row.greedy = p.temperature < kGreedyTemperature || p.top_k == 1;
  row.scale = row.greedy ? 1.0f : float(1.0 / p.temperature);
  row.repetition = float(p.repetition_penalty);
  row.top_k = p.top_k < args.vocab ? int32_t(p.top_k) : 0;
  row.top = int32_t(std::min(args.logprobs_k, args.vocab));
  row.edited = !detail::keeps_logits(p);
  if (!row.edited) return row;
  const bool counted = p.presence_penalty != 0.0 || p.frequency_penalty != 0.0;
  const bool repeated = p.repetition_penalty != 1.0;
  if (repeated) row.prompt = append(args.prompt, ids);
  if (repeated || counted) row.output = append(args.output, ids);
  row.banned = append(p.banned, ids);
  row.bias = append(p.logit_bias, bias);
  return row;
}

template <class T>
void put(const std::vector<T>& from, std::size_t offset, std::vector<std::byte>& to) {
  if (!from.empty()) std::memcpy(to.data() + offset, from.data(), from.size() * sizeof(T));
}

}  // namespace

bool accepts(std::span<const SampleArgs> requests) {
  return std::all_of(requests.begin(), requests.end(),
                     [](const SampleArgs& args) { return args.logprobs_k <= kMaxTop; });
}

void pack(std::span<const SampleArgs> requests, Packed& packed) {
  std::vector<Row> rows;
  std::vector<Bias> bias;
  std::vector<int32_t> ids;
  packed.errors.assign(requests.size(), {});
  for (std::size_t i = 0; i < requests.size(); ++i) {
    try {
      detail::check_params(requests[i]);
      detail::check_ids(requests[i]);
      rows.push_back(row_of(requests[i], ids, bias));
    } catch (const Error& error) {
      packed.errors[i] = error.what();
      SampleArgs harmless;
      harmless.vocab = requests[i].vocab;
      rows.push_back(row_of(harmless, ids, bias));
    }
  }
  packed.bias_offset = rows.size() * sizeof(Row);
  packed.ids_offset = packed.bias_offset + bias.size() * sizeof(Bias);
  packed.bytes.resize(packed.ids_offset + ids.size() * sizeof(int32_t));
  put(rows, 0, packed.bytes);
  put(bias, packed.bias_offset, packed.bytes);
  put(ids, packed.ids_offset, packed.bytes);
}

std::string unpack(const RowResult& row,
                   std::span<const Entry> top,
                   bool asked,
                   SampleResult& result) {
  switch (row.outcome) {
    case Outcome::kDrawn:
      break;
    case Outcome::kNan:
      return "sampling: found a NaN logit";
    case Outcome::kInfinite:
      return "sampling: found a logit of +inf";
    case Outcome::kAllBanned:
      return "sampling: found every token banned (-inf), expected at least one allowed";
  }
  result.token = row.token;
  if (!asked) return {};
  result.logprob = float(double(row.logit) - row.log_total);
  std::vector<Entry> best(top.begin(), top.begin() + row.top_count);
  std::sort(best.begin(), best.end(), [](const Entry& a, const Entry& b) {
    return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
  });
  for (const Entry& entry : best)
    result.top.emplace_back(entry.id, float(double(entry.logit) - row.log_total));
  return {};
}

}  // namespace longspur::kernels::sampling::cuda
