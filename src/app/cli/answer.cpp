#include "app/cli/answer.h"

#include <chrono>
#include <iterator>

#include "app/cli/interrupt.h"
#include "base/error.h"

namespace longspur::app::cli {

void Answer::add(RequestUpdate update) {
  text += update.text;
  tokens.insert(tokens.end(), update.tokens.begin(), update.tokens.end());
  std::move(update.logprobs.begin(), update.logprobs.end(), std::back_inserter(logprobs));
  finish = update.finish;
  error = std::move(update.error);
}

double monotonic_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

TimedAnswer run_request(engine::Engine& engine,
                        Request request,
                        const std::function<void(std::string_view)>& on_text) {
  TimedAnswer result;
  Answer& answer = result.answer;
  const std::string id = request.id;
  const double start = monotonic_seconds();
  engine.submit(std::move(request));
  while (answer.finish == FinishReason::kNone) {
    if (pending_interrupt() != 0) engine.cancel(id);
    for (RequestUpdate& update : engine.step()) {
      if (result.first_token_s == 0 && !update.tokens.empty())
        result.first_token_s = monotonic_seconds() - start;
      if (on_text && !update.text.empty()) on_text(update.text);
      answer.add(std::move(update));
    }
    LONGSPUR_ASSERT(answer.finish != FinishReason::kNone || engine.busy());
  }
  require(answer.finish != FinishReason::kError, answer.error);
  return result;
}

}  // namespace longspur::app::cli
