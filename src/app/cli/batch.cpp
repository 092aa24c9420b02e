#include "app/cli/batch.h"

#include <filesystem>
#include <map>
#include <memory>

#include "app/cli/answer.h"
#include "app/cli/batch_input.h"
#include "app/cli/batch_output.h"
#include "app/cli/console.h"
#include "app/cli/interrupt.h"
#include "app/cli/model.h"
#include "app/cli/progress.h"
#include "app/cli/prompt.h"
#include "app/cli/report.h"
#include "app/cli/sampling_flags.h"
#include "base/error.h"

namespace longspur::app::cli {

namespace {

constexpr int64_t kSequences = 16;  // in flight unless --max-sequences says otherwise

class Batch {
 public:
  Batch(const Settings& settings, std::vector<BatchLine> lines, BatchOutput& output)
      : settings_(settings),
        name_(settings.text("input")),
        defaults_(sampling_params(settings)),
        output_(output),
        failed_(output.failed()) {
    for (BatchLine& line : lines) {
      if (output.finished().contains(line.key)) {
        ++skipped_;
      } else {
        lines_.push_back(std::move(line));
      }
    }
  }

  // Loads the model only when there is something to do.
  void run() {
    if (lines_.empty()) return;
    engine::EngineOptions options =
        engine_options(settings_, std::min(kSequences, int64_t(lines_.size())));
    engine_ = load_engine(options);
    check_sampling(defaults_, engine_->config().vocab);
    start_ = monotonic_seconds();
    Progress progress("batch");
    while (pending_interrupt() == 0) {
      fill(options.max_sequences);
      if (flights_.empty()) break;
      for (RequestUpdate& update : engine_->step()) take(std::move(update));
      show(progress);
    }
    output_.sync();
  }

  int exit_code() const {
    if (left() > 0) return interrupt_exit_code();
    return failed_ > 0 ? 1 : 0;
  }

  std::string summary() const {
    std::string text = concat("batch: ", done_, " finished now, ", skipped_, " before");
    if (failed_ > 0) text += concat(", ", failed_, " failed (see \"error\" in the output)");
    if (left() > 0) text += concat(", ", left(), " left; run the same command again to go on");
    return text + "\n";
  }

  Json json() const {
    const engine::EngineStats stats = engine_ ? engine_->stats() : engine::EngineStats();
    return {{"requests", skipped_ + int64_t(lines_.size())},
            {"finished", skipped_ + done_},
            {"finished_before", skipped_},
            {"failed", failed_},
            {"left", left()},
            {"usage", usage_json(prompt_tokens_, tokens_)},
            {"timing", timing_json(stats)},
            {"memory", memory_json(stats)},
            {"attention", attention_json(settings_, stats)}};
  }

 private:
  struct Flight {
    const BatchLine* line = nullptr;
    int64_t prompt_tokens = 0;
    SamplingParams sampling;
    Answer answer;
  };

  int64_t left() const { return int64_t(lines_.size()) - done_; }

  void fill(int64_t sequences) {
    while (int64_t(flights_.size()) < sequences && next_ < lines_.size()) {
      const BatchLine& line = lines_[next_++];
      try {
        submit(line);
      } catch (const Error& error) {
        fail(line, error.what());
      }
    }
  }

  void submit(const BatchLine& line) {
    BatchRequest parsed = parse_batch_line(line, name_, defaults_);
    Request request{line.key, prompt_ids(parsed), parsed.sampling, parsed.attention_threshold};
    Flight flight{&line, int64_t(request.prompt.size()), std::move(parsed.sampling), {}};
    try {
      engine_->submit(std::move(request));
    } catch (const Error& error) {
      throw Error(concat(name_, " line ", line.number, ": ", error.what()));
    }
    flights_.emplace(line.key, std::move(flight));
  }

  std::vector<int32_t> prompt_ids(BatchRequest& request) const {
    if (auto* ids = std::get_if<std::vector<int32_t>>(&request.prompt)) return std::move(*ids);
    if (const auto* messages = std::get_if<Json>(&request.prompt))
      return chat_prompt(*engine_, *messages);
    const auto& text = std::get<std::string>(request.prompt);
    if (!settings_.flag("chat")) return raw_prompt(*engine_, text);
    return chat_prompt(*engine_, single_turn(settings_.text_or_empty("system"), text));
  }

  void take(RequestUpdate update) {
    const auto found = flights_.find(update.id);
    LONGSPUR_ASSERT(found != flights_.end());
    Flight& flight = found->second;
    flight.answer.add(std::move(update));
    if (flight.answer.finish == FinishReason::kNone) return;
    if (flight.answer.finish == FinishReason::kError) {
      fail(*flight.line, flight.answer.error);
    } else {
      finish(flight);
    }
    flights_.erase(found);
  }

  void finish(const Flight& flight) {
    const Answer& answer = flight.answer;
    output_.append({{"id", flight.line->id},
                    {"text", answer.text},
                    {"tokens", answer.tokens},
                    {"logprobs", logprobs_json(answer.logprobs, flight.sampling, *engine_)},
                    {"finish_reason", finish_reason_name(answer.finish)},
                    {"usage", usage_json(flight.prompt_tokens, int64_t(answer.tokens.size()))}});
    prompt_tokens_ += flight.prompt_tokens;
    tokens_ += int64_t(answer.tokens.size());
    ++done_;
  }

  void fail(const BatchLine& line, const std::string& message) {
    output_.append({{"id", line.id},
                    {"finish_reason", finish_reason_name(FinishReason::kError)},
                    {"error", one_line(message)}});
    ++failed_;
    ++done_;
  }

  void show(Progress& progress) const {
    const double seconds = monotonic_seconds() - start_;
    progress.update(double(done_), double(lines_.size()),
                    concat(done_, " of ", lines_.size(), " finished, ",
                           int64_t(double(tokens_) / seconds), " tokens/s"));
  }

  const Settings& settings_;
  std::string name_;
  SamplingParams defaults_;
  BatchOutput& output_;
  std::vector<BatchLine> lines_;  // not finished by an earlier run
  size_t next_ = 0;               // first line that was not submitted
  std::unique_ptr<engine::Engine> engine_;
  std::map<std::string, Flight> flights_;
  int64_t skipped_ = 0, done_ = 0, failed_ = 0, tokens_ = 0, prompt_tokens_ = 0;
  double start_ = 0;
};

}  // namespace

int run_batch(const Settings& settings) {
  const std::string& input = settings.text("input");
  const std::string& output_path = settings.text("output");
  std::error_code none;
  if (std::filesystem::equivalent(input, output_path, none))
    throw UsageError(concat("--output: found the file of --input, ", input, ", expected another"));
  const std::string content = read_file(input);
  std::vector<BatchLine> lines = index_batch(content, input);
  BatchOutput output(output_path);
  Batch batch(settings, std::move(lines), output);
  batch.run();
  write_stderr(batch.summary());
  if (settings.flag("json")) write_json(batch.json());
  return batch.exit_code();
}

}  // namespace longspur::app::cli
