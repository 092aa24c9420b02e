// `longspur generate`: a prompt to text, streaming; or a file of prompts to a file of answers.
#include <spdlog/spdlog.h>

#include "app/cli/answer.h"
#include "app/cli/batch.h"
#include "app/cli/console.h"
#include "app/cli/interrupt.h"
#include "app/cli/model.h"
#include "app/cli/option_table.h"
#include "app/cli/prompt.h"
#include "app/cli/report.h"
#include "app/cli/sampling_flags.h"
#include "app/cli/verbs/verbs.h"
#include "base/error.h"

namespace longspur::app::cli {

namespace {

void refuse_together(const Settings& settings, std::string_view a, std::string_view b) {
  if (settings.given(a) && settings.given(b))
    throw UsageError(concat("generate: found --", a, " with --", b, ", expected one of them"));
}

void refuse_without(const Settings& settings, std::string_view option, std::string_view needed) {
  if (settings.given(option) && !settings.given(needed))
    throw UsageError(concat("generate: found --", option, " without --", needed));
}

void check_combination(const Settings& settings) {
  refuse_together(settings, "input", "prompt");
  refuse_together(settings, "input", "prompt-file");
  refuse_without(settings, "input", "output");
  refuse_without(settings, "output", "input");
  if (settings.has("system") && !settings.flag("chat"))
    throw UsageError("generate: found --system without --chat, which a system message needs");
}

Json answer_json(const Settings& settings,
                 const engine::Engine& engine,
                 const SamplingParams& sampling,
                 int64_t prompt_tokens,
                 const TimedAnswer& timed) {
  const Answer& answer = timed.answer;
  Json timing = timing_json(engine.stats());
  timing["first_token_s"] = timed.first_token_s;
  return {{"text", answer.text},
          {"tokens", answer.tokens},
          {"logprobs", logprobs_json(answer.logprobs, sampling, engine)},
          {"finish_reason", finish_reason_name(answer.finish)},
          {"usage", usage_json(prompt_tokens, int64_t(answer.tokens.size()))},
          {"timing", std::move(timing)},
          {"memory", memory_json(engine.stats())},
          {"attention", attention_json(settings, engine.stats())}};
}

int run_single(const Settings& settings) {
  const SamplingParams sampling = sampling_params(settings);
  const std::string text = read_prompt(settings);
  const auto engine = load_engine(engine_options(settings));
  check_sampling(sampling, engine->config().vocab);
  Request request{"prompt",
                  settings.flag("chat")
                      ? chat_prompt(*engine, single_turn(settings.text_or_empty("system"), text))
                      : raw_prompt(*engine, text),
                  sampling};
  const int64_t prompt_tokens = int64_t(request.prompt.size());
  const bool json = settings.flag("json");
  if (sampling.logprobs && !json) spdlog::warn("--logprobs: shown only with --json");
  const TimedAnswer timed = run_request(*engine, std::move(request), [&](std::string_view piece) {
    if (!json) write_stdout(piece);
  });
  if (json) {
    write_json(answer_json(settings, *engine, sampling, prompt_tokens, timed));
  } else {
    if (!timed.answer.text.ends_with('\n')) write_stdout("\n");
    if (settings.flag("stats")) write_stderr(statistics(engine->stats(), prompt_tokens, timed));
  }
  return timed.answer.finish == FinishReason::kCancelled ? interrupt_exit_code() : 0;
}

int run(const Settings& settings) {
  check_combination(settings);
  return settings.has("input") ? run_batch(settings) : run_single(settings);
}

std::vector<Option> prompt_options() {
  const std::string group = "Input and output";
  return {
      {.name = "prompt",
       .group = group,
       .help = "the prompt; after the file's text when --prompt-file is given too",
       .placeholder = "TEXT",
       .letter = 'p'},
      {.name = "prompt-file",
       .group = group,
       .help = "file that holds the prompt (- for stdin); stdin when neither is given",
       .placeholder = "FILE",
       .letter = 'f',
       .completes = Completes::kFile},
      {.name = "chat",
       .type = OptionType::kFlag,
       .group = group,
       .help = "the prompt is a user's message: put it through the model's chat template"},
      {.name = "system", .group = group, .help = "system message before it", .placeholder = "TEXT"},
      {.name = "input",
       .group = group,
       .help = "JSONL file of prompts, many in flight",
       .placeholder = "FILE",
       .completes = Completes::kFile},
      {.name = "output",
       .group = group,
       .help = "JSONL file of answers; one that exists is gone on with",
       .placeholder = "FILE",
       .letter = 'o',
       .completes = Completes::kFile},
      {.name = "stats",
       .type = OptionType::kFlag,
       .fallback = "true",
       .group = group,
       .help = "statistics to stderr at the end"},
  };
}

}  // namespace

Verb generate_verb() {
  return {
      .name = "generate",
      .summary = "writes the continuation of a prompt, or the answer to a message",
      .details =
          "A raw prompt is read with its control tokens; with --chat the text of the user stays "
          "text. --json: text, tokens, logprobs, finish_reason, usage, timing, memory, attention. "
          "A line of --input is a JSON object with prompt (a text or token ids) or messages, an id "
          "(a string or integer; else the line's number), and sampling fields named like the "
          "flags with underscores; with sparse attention also attention_threshold, in place of the "
          "thresholds of the options. A wrong line becomes an error in its result line, the others "
          "go "
          "on, and the exit code is 1. A run that was stopped goes on when started again.",
      .examples = {"longspur generate -p 'Once upon a time'",
                   "longspur generate --chat -p 'Name three birds that migrate.' --temperature 0.7",
                   "longspur generate --chat --prompt-file report.txt -p 'What does it conclude?'",
                   "longspur generate --input prompts.jsonl --output answers.jsonl"},
      .options = verb_options(prompt_options(),
                              {OptionGroup::kSampling, OptionGroup::kModel, OptionGroup::kEngine}),
      .run = run,
  };
}

}  // namespace longspur::app::cli
