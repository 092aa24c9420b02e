#include "engine/sampling.h"

#include <algorithm>
#include <exception>

namespace longspur::engine {

namespace sampling = kernels::sampling;

namespace {

bool contains(const std::vector<int32_t>& ids, int32_t token) {
  return std::find(ids.begin(), ids.end(), token) != ids.end();
}

sampling::SamplingView view_of(const Sequence& sequence) {
  const SamplingParams& params = sequence.request.sampling;
  sampling::SamplingView view;
  view.temperature = params.temperature;
  view.top_k = params.top_k;
  view.top_p = params.top_p;
  view.min_p = params.min_p;
  view.repetition_penalty = params.repetition_penalty;
  view.presence_penalty = params.presence_penalty;
  view.frequency_penalty = params.frequency_penalty;
  view.logit_bias = params.logit_bias;
  view.seed = params.seed;
  view.stream = sequence.stream;
  view.position = uint64_t(sequence.tokens.size());
  return view;
}

}  // namespace

bool ends_sequence(int32_t token,
                   const SamplingParams& params,
                   const io::GenerationDefaults& defaults) {
  return contains(params.stop_ids, token) ||
         (!params.ignore_eos && contains(defaults.eos_ids, token));
}

uint64_t random_stream(const std::string& request_id) {
  uint64_t hash = 0xcbf29ce484222325u;  // FNV-1a
  for (const char c : request_id) hash = (hash ^ uint8_t(c)) * 0x100000001b3u;
  return hash;
}

Sampled Sampler::sample(const Sequence& sequence,
                        const float* logits,
                        int64_t vocab,
                        const io::GenerationDefaults& defaults) {
  const SamplingParams& params = sequence.request.sampling;
  banned_.clear();
  if (sequence.output_tokens() < params.min_tokens) {
    banned_ = params.stop_ids;
    if (!params.ignore_eos)
      banned_.insert(banned_.end(), defaults.eos_ids.begin(), defaults.eos_ids.end());
  }
  sampling::SampleArgs args;
  args.logits = logits;
  args.vocab = vocab;
  args.params = view_of(sequence);
  args.params.banned = banned_;
  const std::span<const int32_t> tokens(sequence.tokens);
  args.prompt = tokens.first(size_t(sequence.prompt_tokens()));
  args.output = tokens.subspan(size_t(sequence.prompt_tokens()));
  args.logprobs_k = params.logprobs.value_or(-1);
  Sampled sampled;
  try {
    const sampling::SampleResult result = sampling::sample(args, workspace_);
    sampled.token = result.token;
    sampled.logprob = {result.token, result.logprob, {result.top.begin(), result.top.end()}};
  } catch (const std::exception& error) {
    sampled.error = error.what();
  }
  return sampled;
}

}  // namespace longspur::engine
