// `longspur bench`: prefill and decode rates by length of context and number of sequences, beside
// llama.cpp's where asked. Correctness comes first: what is timed must also be right.
#include <filesystem>
#include <fstream>
#include <map>
#include <optional>

#include "app/cli/bench/baseline.h"
#include "app/cli/bench/engine_run.h"
#include "app/cli/bench/plan.h"
#include "app/cli/bench/result.h"
#include "app/cli/bench/start.h"
#include "app/cli/console.h"
#include "app/cli/model.h"
#include "app/cli/option_table.h"
#include "app/cli/progress.h"
#include "app/cli/report.h"
#include "app/cli/verbs/verbs.h"
#include "base/error.h"
#include "base/thread_pool.h"
#include "engine/model_bundle.h"

namespace longspur::app::cli {

namespace {

using bench::Baseline;
using bench::EngineRun;
using bench::Plan;
using bench::Result;
using bench::Row;

// Both sides read the same weights and tokens; what is left are two roundings of activations. Below
// this share of equal choices one of them is wrong.
constexpr double kLeastAgreement = 0.8;

using Prompts = std::vector<std::vector<int32_t>>;

Prompts make_prompts(const Plan& plan, int64_t batch, int64_t length) {
  Prompts prompts;
  for (int64_t i = 0; i < batch; ++i)
    prompts.push_back(bench::random_prompt(i, length, plan.vocab));
  return prompts;
}

// Measures one row after the other and shows how far it is.
class Bench {
 public:
  explicit Bench(Plan plan) : plan_(std::move(plan)), progress_("bench") {
    result_.model = plan_.engine.model;
    result_.device = plan_.engine.device;
    result_.attention = plan_.engine.attention.kind;
    result_.threads = plan_.engine.threads > 0 ? plan_.engine.threads : available_threads();
    for (const int64_t batch : plan_.batches)
      runs_ += double(int64_t(plan_.lengths_of(batch).size()) * plan_.repeat);
  }

  void compare_with(const std::string& python) {
    const engine::ModelFiles files = engine::resolve_model(plan_.engine.model);
    if (files.kind != engine::ModelFiles::Kind::kGguf)
      throw UsageError(concat("--compare llama.cpp: found the folder '", files.path,
                              "', expected a .gguf file, which is what it reads"));
    baseline_.emplace(
        Baseline::Options{files.path, python, plan_.longest() + plan_.tokens + 1, result_.threads});
    result_.baseline = baseline_->title();
  }

  Result run() {
    for (const int64_t batch : plan_.batches) measure_batch(batch);
    progress_.clear();
    check_agreement();
    return std::move(result_);
  }

 private:
  // One engine for all lengths of a batch, so that memory is that of this batch alone.
  void measure_batch(int64_t batch) {
    const std::vector<int64_t> lengths = plan_.lengths_of(batch);
    const auto engine = load_engine(plan_.options_for(batch, lengths.back()));
    bench::warm_up(*engine);
    for (const int64_t length : lengths) {
      Row& row = result_.rows.emplace_back();
      row.context = length;
      row.batch = batch;
      measure_row(*engine, row);
    }
    if (batch == 1) measure_single(*engine);
  }

  void measure_row(engine::Engine& engine, Row& row) {
    const Prompts prompts = make_prompts(plan_, row.batch, row.context);
    for (int64_t i = 0; i < plan_.repeat; ++i) {
      progress_.update(done_, runs_,
                       concat("context ", row.context, ", ", row.batch,
                              row.batch == 1 ? " sequence" : " sequences"));
      const EngineRun run = measure_ours(engine, row, prompts);
      if (baseline_ && row.batch == 1) {
        measure_baseline(row, prompts.front(), run, false);
        measure_ours(engine, row, prompts);  // ours, theirs, ours, theirs
        measure_baseline(row, prompts.front(), run, true);
      }
      ++done_;
    }
  }

  EngineRun measure_ours(engine::Engine& engine, Row& row, const Prompts& prompts) {
    EngineRun run = bench::run_engine(engine, prompts, plan_.tokens);
    row.ours.add(run.prefill_s, run.step_s);
    row.ours.attention_s.push_back(run.attention.prefill_s);
    row.density = run.attention.density();
    check_tokens(row, run);
    return run;
  }

  void measure_baseline(Row& row,
                        const std::vector<int32_t>& prompt,
                        const EngineRun& run,
                        bool flash_attention) {
    std::vector<int32_t> tokens = run.tokens.front();
    tokens.resize(size_t(plan_.tokens));
    const bench::BaselineRun other = baseline_->run(flash_attention, prompt, tokens);
    row.baseline[flash_attention ? 1 : 0].add(other.prefill_s, other.step_s);
    row.compare(run, other);
  }

  // The first sequence's tokens depend neither on the run nor on what else is in its batch.
  void check_tokens(const Row& row, const EngineRun& run) {
    std::vector<int32_t> tokens = run.tokens.front();
    tokens.resize(size_t(plan_.tokens) + 1);
    const auto [expected, fresh] = expected_.try_emplace(row.context, tokens);
    if (fresh || expected->second == tokens) return;
    result_.batch_equals_single = false;
    throw Error(concat("bench: found other tokens with ", row.batch, " sequences at context ",
                       row.context, " than in the first run, expected the same"));
  }

  void check_agreement() const {
    const double agreement = result_.top1_agreement();
    require(!(agreement < kLeastAgreement), "bench: found ", 100 * agreement,
            " % of greedy tokens equal to llama.cpp's, expected at least ", 100 * kLeastAgreement,
            " %: the rates are not comparable");
  }

  void measure_single(engine::Engine& engine) {
    const engine::EngineStats stats = engine.stats();
    result_.peak_rss_bytes = peak_rss_bytes();
    result_.peak_context = plan_.longest() + plan_.tokens;
    result_.kv_bytes = stats.memory.kv_bytes;
    result_.weights_bytes = stats.memory.weights_bytes;
  }

  Plan plan_;
  Progress progress_;
  std::optional<Baseline> baseline_;
  std::map<int64_t, std::vector<int32_t>> expected_;  // by context
  Result result_;
  double done_ = 0, runs_ = 0;
};

int64_t model_file_bytes(const std::string& model) {
  return engine::open_model(model, false).file->file_bytes();
}

// Checked before an hour of measuring, not after.
void check_writable(const std::string& path) {
  require(!std::filesystem::is_directory(path), path, ": found a folder, expected a file name");
  const bool existed = std::filesystem::exists(path);
  require(bool(std::ofstream(path, std::ios::app)), path, ": cannot be written");
  if (!existed) std::filesystem::remove(path);
}

// Whole or not at all.
void write_result(const std::string& path, const Json& json) {
  const std::string part = path + ".part";
  {
    std::ofstream file(part, std::ios::binary);
    file << json.dump(1) << "\n";
    file.flush();
    require(bool(file), part, ": cannot be written");
  }
  std::filesystem::rename(part, path);
}

int run(const Settings& settings) {
  const std::string output = settings.text_or_empty("output");
  if (!output.empty()) check_writable(output);
  const Plan plan = bench::make_plan(settings);
  Bench measurement(plan);
  if (settings.has("compare")) measurement.compare_with(settings.text_or_empty("python"));
  Result result = measurement.run();
  result.file_bytes = model_file_bytes(plan.engine.model);
  if (settings.flag("start")) result.start = bench::measure_start(plan.engine, plan.repeat);
  const Json json = bench::result_json(result);
  if (!output.empty()) write_result(output, json);
  if (settings.flag("json")) {
    write_json(json);
  } else {
    write_stdout(bench::result_text(result));
  }
  return 0;
}

std::vector<Option> own_options() {
  const std::string group = "Measurement";
  return {
      {.name = "lengths",
       .fallback = "512,4096,8000",
       .group = group,
       .help = "tokens of context, random ids of a fixed seed; the default shrinks to the model's "
               "context",
       .placeholder = "N,N"},
      {.name = "batch",
       .fallback = "1,16",
       .group = group,
       .help = "sequences decoded together; more than 1 at the shortest length only",
       .placeholder = "N,N"},
      {.name = "tokens",
       .type = OptionType::kInteger,
       .fallback = "32",
       .group = group,
       .help = "decode steps a run",
       .placeholder = "N",
       .low = 1,
       .high = 1 << 20},
      {.name = "repeat",
       .type = OptionType::kInteger,
       .fallback = "3",
       .group = group,
       .help = "runs of each row; medians count",
       .placeholder = "N",
       .low = 1,
       .high = 1000},
      {.name = "start",
       .type = OptionType::kFlag,
       .fallback = "true",
       .group = group,
       .help = "also measure process start to first token, with a prompt of 16 tokens"},
      {.name = "compare",
       .group = group,
       .help = "measure this too, alternating, same file, threads and tokens",
       .placeholder = "NAME",
       .choices = {"llama.cpp"}},
      {.name = "python",
       .group = group,
       .help = "interpreter that has llama_cpp; else .venv beside the sources, else python3",
       .placeholder = "FILE",
       .completes = Completes::kFile},
      {.name = "output",
       .group = group,
       .help = "write the JSON object to this file too",
       .placeholder = "FILE",
       .completes = Completes::kFile},
  };
}

}  // namespace

Verb bench_verb() {
  return {
      .name = "bench",
      .summary = "measures prefill and decode rates by length and batch",
      .details =
          "Prefill runs from submit to the first token, decode steps are whole steps of the "
          "engine: "
          "scheduling, sampling and text included. In the same run it checks that tokens do not "
          "depend on the batch and, with --compare, how many are llama.cpp's choice too. Of "
          "llama.cpp's two flash-attention settings the better counts. --json: rows (context, "
          "batch, rates, details), baseline, correctness, start, memory.",
      .examples = {"longspur bench", "longspur bench --lengths 512,2048 --batch 1,8 --tokens 64",
                   "longspur bench --compare llama.cpp --output bench.json"},
      .options = verb_options(own_options(), {OptionGroup::kModel, OptionGroup::kEngine}),
      .run = run,
  };
}

}  // namespace longspur::app::cli
