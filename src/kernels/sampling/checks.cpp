#include "kernels/sampling/checks.h"

#include <cmath>

#include "base/error.h"
#include "base/rng.h"

namespace longspur::kernels::sampling::detail {

namespace {

void check_range(std::span<const int32_t> ids, int64_t vocab, const char* what) {
  for (const int32_t id : ids)
    require(id >= 0 && id < vocab, "sampling: found ", what, " id ", id, ", expected 0 to ",
            vocab - 1);
}

}  // namespace

void check_params(const SampleArgs& args) {
  const SamplingView& p = args.params;
  require(args.vocab > 0 && args.vocab <= INT32_MAX, "sampling: found ", args.vocab,
          " logits, expected at least 1");
  require(std::isfinite(p.temperature) && p.temperature >= 0.0, "temperature: found ",
          p.temperature, ", expected a number of at least 0");
  require(p.top_k >= 0, "top_k: found ", p.top_k, ", expected at least 0");
  require(p.top_p > 0.0 && p.top_p <= 1.0, "top_p: found ", p.top_p, ", expected (0, 1]");
  require(p.min_p >= 0.0 && p.min_p <= 1.0, "min_p: found ", p.min_p, ", expected [0, 1]");
}

void check_ids(const SampleArgs& args) {
  check_range(args.prompt, args.vocab, "prompt");
  check_range(args.output, args.vocab, "output");
  check_range(args.params.banned, args.vocab, "banned");
  for (const auto& [id, bias] : args.params.logit_bias) check_range({&id, 1}, args.vocab, "bias");
}

bool keeps_logits(const SamplingView& params) {
  return params.repetition_penalty == 1.0 && params.presence_penalty == 0.0 &&
         params.frequency_penalty == 0.0 && params.logit_bias.empty() && params.banned.empty();
}

// 53 bits: with fewer, tokens in the tail of a large vocabulary could never be drawn.
uint64_t draw_bits(const SamplingView& params) {
  const auto bits = philox4x32(params.seed, params.stream, params.position);
  return (uint64_t(bits[0]) << 32 | bits[1]) >> 11;
}

}  // namespace longspur::kernels::sampling::detail
