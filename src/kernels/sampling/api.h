// Chooses the next token of one sequence from its logits.
//
// Order of operations: repetition penalty (prompt and output), frequency and presence penalty
// (output), bias, bans, temperature, top-k, top-p over what top-k left, min-p, then one draw by
// inverse transform over the kept tokens in id order. The draw is a pure function of (seed, stream,
// position): it does not depend on the batch, the thread count or earlier calls.
//
// Ties go to the lower id everywhere: top_k keeps exactly k tokens, greedy is the first maximum.
// Log-probabilities are those of the logits as given, before any of the above.
// A NaN or +inf logit, or every token banned, is an Error. Nothing is kept between calls but
// memory.
#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

namespace longspur::kernels::sampling {

// Temperatures below this are greedy: dividing by them would overflow.
inline constexpr double kGreedyTemperature = 1e-5;

struct SamplingView {
  double temperature = 0.0;
  int64_t top_k = 0;   // 0, or at least V: off
  double top_p = 1.0;  // (0, 1]
  double min_p = 0.0;  // [0, 1]
  double repetition_penalty = 1.0;
  double presence_penalty = 0.0;
  double frequency_penalty = 0.0;
  std::span<const std::pair<int32_t, double>> logit_bias;  // values finite or -inf
  std::span<const int32_t> banned;                         // e.g. eos before min_tokens
  uint64_t seed = 0;
  uint64_t stream = 0;    // tells apart sequences that share a seed
  uint64_t position = 0;  // of the token to be drawn
};

struct SampleArgs {
  const float* logits = nullptr;  // [V] fp32, not modified
  int64_t vocab = 0;
  SamplingView params;
  std::span<const int32_t> prompt;  // ids; read only when a penalty needs them
  std::span<const int32_t> output;
  int64_t logprobs_k = -1;  // -1: none; k: the token's log-probability and the k best
};

struct SampleResult {
  int32_t token = 0;
  float logprob = 0.0f;                        // of `token`; 0 when not asked for
  std::vector<std::pair<int32_t, float>> top;  // falling, ties by rising id
};

struct Candidate {
  float logit;
  int32_t id;
  float weight;  // exp((logit - max) / temperature)
};

// Scratch memory, grown on demand and reused. One per thread.
struct Workspace {
  std::vector<float> logits;       // [V] after penalties
  std::vector<float> weights;      // [V]
  std::vector<float> block_max;    // [ceil(V / 64)]
  std::vector<float> block_order;  // scratch of the selection
  std::vector<double> block_sum;   // [ceil(V / 64)]
  std::vector<int32_t> counts;     // [V], zero between calls
  std::vector<Candidate> candidates;
  std::vector<Candidate> scratch;
};

SampleResult sample(const SampleArgs& args, Workspace& workspace);

// The same result by the obvious way: double arithmetic, a full sort, no workspace.
// margin, if given, gets how far (in probability) the draw and the filters were from another
// outcome.
SampleResult sample_ref(const SampleArgs& args, double* margin = nullptr);

}  // namespace longspur::kernels::sampling
