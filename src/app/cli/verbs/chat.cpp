// `longspur chat`: a conversation in the terminal; with piped input each line is a message.
#include <spdlog/spdlog.h>

#include "app/cli/answer.h"
#include "app/cli/console.h"
#include "app/cli/interrupt.h"
#include "app/cli/line_reader.h"
#include "app/cli/model.h"
#include "app/cli/option_table.h"
#include "app/cli/prompt.h"
#include "app/cli/report.h"
#include "app/cli/sampling_flags.h"
#include "app/cli/verbs/verbs.h"
#include "base/error.h"

namespace longspur::app::cli {

namespace {

constexpr const char* kHelp =
    "/reset starts a new conversation, /exit or Ctrl-D ends, Ctrl-C stops an answer, /help shows "
    "this\n";

class Conversation {
 public:
  Conversation(const Settings& settings, engine::Engine& engine)
      : settings_(settings), engine_(engine), sampling_(sampling_params(settings)) {
    check_sampling(sampling_, engine.config().vocab);
    require(engine.chat_template() != nullptr, "model '", settings.text("model"),
            "': found no chat template, expected one for a conversation");
    reset();
  }

  void reset() {
    messages_ = Json::array();
    if (const std::string system = settings_.text_or_empty("system"); !system.empty())
      messages_.push_back({{"role", "system"}, {"content", system}});
  }

  // Streams the answer, which joins the conversation even when it was stopped. When it cannot be
  // had (too long a conversation), the message is taken back.
  void say(const std::string& message) {
    messages_.push_back({{"role", "user"}, {"content", message}});
    try {
      answer();
    } catch (const Error&) {
      messages_.erase(messages_.size() - 1);
      throw;
    }
  }

  Json json() const {
    return {{"messages", messages_},
            {"usage", usage_json(prompt_tokens_, tokens_)},
            {"timing", timing_json(engine_.stats())},
            {"memory", memory_json(engine_.stats())},
            {"attention", attention_json(settings_, engine_.stats())}};
  }

 private:
  void answer() {
    const bool json = settings_.flag("json");
    Request request{concat("turn ", messages_.size()), chat_prompt(engine_, messages_), sampling_};
    prompt_tokens_ += int64_t(request.prompt.size());
    const TimedAnswer timed = run_request(engine_, std::move(request), [&](std::string_view text) {
      if (!json) write_stdout(text);
    });
    tokens_ += int64_t(timed.answer.tokens.size());
    messages_.push_back({{"role", "assistant"}, {"content", timed.answer.text}});
    if (!json) write_stdout("\n");
  }

  const Settings& settings_;
  engine::Engine& engine_;
  SamplingParams sampling_;
  Json messages_;
  int64_t prompt_tokens_ = 0, tokens_ = 0;
};

// What became of one line of input.
enum class Turn { kGoOn, kEnd, kFailed };

Turn take_line(Conversation& conversation, const std::string& line) {
  if (line == "/exit" || line == "/quit") return Turn::kEnd;
  if (line == "/reset") {
    conversation.reset();
  } else if (line == "/help") {
    write_stderr(kHelp);
  } else if (!line.empty()) {
    try {
      conversation.say(line);
    } catch (const Error& error) {
      write_stderr(concat("longspur: ", one_line(error.what()), "; /reset starts anew\n"));
      return Turn::kFailed;
    }
  }
  return Turn::kGoOn;
}

int converse(Conversation& conversation, bool terminal) {
  LineReader reader;
  std::string line;
  int code = 0;
  for (;;) {
    if (terminal) write_stderr("> ");
    const LineReader::Result result = reader.next(line);
    if (result == LineReader::Result::kEnd) return code;
    if (result == LineReader::Result::kInterrupted) {
      if (!terminal) return interrupt_exit_code();
      write_stderr("\n/exit or Ctrl-D ends\n");
      clear_interrupt();
      continue;
    }
    const Turn turn = take_line(conversation, line);
    if (turn == Turn::kEnd) return code;
    if (turn == Turn::kFailed) code = 1;
    if (pending_interrupt() != 0 && !terminal) return interrupt_exit_code();
    clear_interrupt();
  }
}

int run(const Settings& settings) {
  const bool terminal = stdin_is_terminal();
  // a wrong flag is told before anything is loaded
  if (sampling_params(settings).logprobs) spdlog::warn("--logprobs: chat does not show them");
  const auto engine = load_engine(engine_options(settings));
  Conversation conversation(settings, *engine);
  if (terminal) write_stderr(kHelp);
  const int code = converse(conversation, terminal);
  if (terminal) write_stderr("\n");
  if (settings.flag("json")) write_json(conversation.json());
  return code;
}

}  // namespace

Verb chat_verb() {
  std::vector<Option> own = {{.name = "system",
                              .group = "Input",
                              .help = "system message at the head of the conversation",
                              .placeholder = "TEXT"}};
  return {
      .name = "chat",
      .summary = "talks with the model in the terminal",
      .details =
          "Type a message and Enter; the answer streams. /reset starts a new conversation, "
          "/exit or Ctrl-D ends, Ctrl-C stops an answer. With piped input each line is a "
          "message. --json: nothing streams, the conversation comes as one object at the "
          "end: messages, usage, timing, memory, attention.",
      .examples = {"longspur chat", "longspur chat --model ~/models/Qwen3-0.6B --temperature 0.7",
                   "printf 'Hi!\\nAnd in French?\\n' | longspur chat"},
      .options = verb_options(std::move(own),
                              {OptionGroup::kSampling, OptionGroup::kModel, OptionGroup::kEngine},
                              {{"max-tokens", "1024"}}),
      .run = run,
  };
}

}  // namespace longspur::app::cli
