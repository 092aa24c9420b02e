// One request in flight: its tokens, what the scheduler knows of it, its text and its news.
#pragma once

#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "engine/text_output.h"
#include "request/request.h"
#include "sched/scheduler.h"

namespace longspur::engine {

// The scheduler's view is the base, so that its plans lead straight back to the sequence.
struct Sequence : sched::Sequence {
  Sequence(Request r, cache::BlockManager& manager, uint64_t stream_id)
      : sched::Sequence(manager), request(std::move(r)), tokens(request.prompt), stream(stream_id) {
    total = prompt = int64_t(tokens.size());
  }

  int64_t prompt_tokens() const { return int64_t(request.prompt.size()); }
  int64_t output_tokens() const { return int64_t(tokens.size()) - prompt_tokens(); }

  Request request;
  std::vector<int32_t> tokens;     // prompt, then output
  uint64_t stream;                 // key of the random numbers
  std::optional<TextOutput> text;  // absent when the model has no tokenizer
};

}  // namespace longspur::engine
