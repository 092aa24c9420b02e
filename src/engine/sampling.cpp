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

// Ids that must not be drawn yet.
std::vector<int32_t> banned_now(const Sequence& sequence, const io::GenerationDefaults& defaults) {
  const SamplingParams& params = sequence.request.sampling;
  if (sequence.output_tokens() >= params.min_tokens) return {};
  std::vector<int32_t> banned = params.stop_ids;
  if (!params.ignore_eos)
    banned.insert(banned.end(), defaults.eos_ids.begin(), defaults.eos_ids.end());
  return banned;
}

// Borrows from the sequence and from `banned`.
sampling::SampleArgs args_of(const Sequence& sequence,
                             int64_t vocab,
                             std::span<const int32_t> banned) {
  sampling::SampleArgs args;
  args.vocab = vocab;
  args.params = view_of(sequence);
  args.params.banned = banned;
  const std::span<const int32_t> tokens(sequence.tokens);
  args.prompt = tokens.first(size_t(sequence.prompt_tokens()));
  args.output = tokens.subspan(size_t(sequence.prompt_tokens()));
  args.logprobs_k = sequence.request.sampling.logprobs.value_or(-1);
  return args;
}

void take(const sampling::SampleResult& result, Sampled& sampled) {
  sampled.token = result.token;
  sampled.logprob = {result.token, result.logprob, {result.top.begin(), result.top.end()}};
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
  const std::vector<int32_t> banned = banned_now(sequence, defaults);
  sampling::SampleArgs args = args_of(sequence, vocab, banned);
  args.logits = logits;
  Sampled sampled;
  try {
    take(sampling::sample(args, workspace_), sampled);
  } catch (const std::exception& error) {
    sampled.error = error.what();
  }
  return sampled;
}

bool sample_on_device(runtime::Executor& executor,
                      std::span<Sequence* const> sequences,
                      int64_t vocab,
                      const io::GenerationDefaults& defaults,
                      std::span<Sampled> sampled) {
  std::vector<std::vector<int32_t>> banned;
  banned.reserve(sequences.size());
  std::vector<sampling::SampleArgs> args;
  for (const Sequence* sequence : sequences) {
    banned.push_back(banned_now(*sequence, defaults));
    args.push_back(args_of(*sequence, vocab, banned.back()));
  }
  std::vector<runtime::Draw> draws(sequences.size());
  if (!executor.sample(args, draws)) return false;
  for (size_t i = 0; i < draws.size(); ++i) {
    take(draws[i].result, sampled[i]);
    sampled[i].error = draws[i].error;
  }
  return true;
}

}  // namespace longspur::engine
