// See penalties.h. The repetition penalty divides positive logits and multiplies negative ones,
// once for each id that occurs in prompt or output; frequency is subtracted per occurrence in the
// output, presence once. Time is linear in the history; only touched entries are visited.
#include "kernels/sampling/penalties.h"

#include <limits>

#include "kernels/sampling/checks.h"

namespace longspur::kernels::sampling::detail {

namespace {

void repeat(std::span<const int32_t> ids,
            float penalty,
            std::vector<float>& logits,
            std::vector<int32_t>& seen) {
  for (const int32_t id : ids) {
    if (seen[size_t(id)]) continue;
    seen[size_t(id)] = 1;
    float& logit = logits[size_t(id)];
    logit = logit < 0.0f ? logit * penalty : logit / penalty;
  }
}

void clear(std::span<const int32_t> ids, std::vector<int32_t>& counts) {
  for (const int32_t id : ids) counts[size_t(id)] = 0;
}

}  // namespace

void adjust_logits(const SampleArgs& args,
                   std::vector<float>& logits,
                   std::vector<int32_t>& counts) {
  const SamplingView& p = args.params;
  check_ids(args);
  if (p.repetition_penalty != 1.0) {
    repeat(args.prompt, float(p.repetition_penalty), logits, counts);
    repeat(args.output, float(p.repetition_penalty), logits, counts);
    clear(args.prompt, counts);
    clear(args.output, counts);
  }
  if (p.presence_penalty != 0.0 || p.frequency_penalty != 0.0) {
    for (const int32_t id : args.output) ++counts[size_t(id)];
    for (const int32_t id : args.output) {
      int32_t& count = counts[size_t(id)];
      if (count == 0) continue;  // done at an earlier occurrence
      const double penalty = p.frequency_penalty * double(count) + p.presence_penalty;
      logits[size_t(id)] = float(double(logits[size_t(id)]) - penalty);
      count = 0;
    }
  }
  for (const auto& [id, bias] : p.logit_bias)
    logits[size_t(id)] = float(double(logits[size_t(id)]) + bias);
  for (const int32_t id : p.banned) logits[size_t(id)] = -std::numeric_limits<float>::infinity();
}

}  // namespace longspur::kernels::sampling::detail
