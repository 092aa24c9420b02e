// Draws a sequence's next token under its request's parameters.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "engine/sequence.h"
#include "io/files/model_config.h"
#include "kernels/sampling/api.h"
#include "request/request.h"
#include "runtime/executor.h"

namespace longspur::engine {

struct Sampled {
  int32_t token = 0;
  TokenLogprob logprob;  // filled when the request asks for it
  std::string error;     // not empty: the logits were unusable; only this request fails
};

// Scratch of one thread.
class Sampler {
 public:
  Sampled sample(const Sequence& sequence,
                 const float* logits,  // [V]
                 int64_t vocab,
                 const io::GenerationDefaults& defaults);

 private:
  kernels::sampling::Workspace workspace_;
};

// Draws for `sequences`, the outputs of the executor's last forward, where their logits are. False
// when the executor cannot.
bool sample_on_device(runtime::Executor& executor,
                      std::span<Sequence* const> sequences,
                      int64_t vocab,
                      const io::GenerationDefaults& defaults,
                      std::span<Sampled> sampled);

// True when `token` ends the sequence: an end-of-text id (unless ignored) or one of the request's.
bool ends_sequence(int32_t token,
                   const SamplingParams& params,
                   const io::GenerationDefaults& defaults);

// Key of a request's random numbers: depends on its id alone, so batch, order and resumption change
// nothing.
uint64_t random_stream(const std::string& request_id);

}  // namespace longspur::engine
