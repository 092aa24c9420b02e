// One request from submit to end.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "engine/engine.h"
#include "request/request.h"

namespace longspur::app::cli {

struct Answer {
  std::string text;
  std::vector<int32_t> tokens;
  std::vector<TokenLogprob> logprobs;
  FinishReason finish = FinishReason::kNone;
  std::string error;  // for kError

  // Takes in what a step brought.
  void add(RequestUpdate update);
};

// Seconds of a clock that only goes forward.
double monotonic_seconds();

struct TimedAnswer {
  Answer answer;
  double first_token_s = 0;  // from submit
};

// Runs until the request ends. A pending interrupt cancels it: what there is stays, finish is
// kCancelled. Throws Error when the request fails.
TimedAnswer run_request(engine::Engine& engine,
                        Request request,
                        const std::function<void(std::string_view)>& on_text);

}  // namespace longspur::app::cli
