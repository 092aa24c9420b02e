// `longspur calibrate`: XAttention's threshold of each layer and head from a dense pass over a
// text.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <fstream>

#include "app/cli/console.h"
#include "app/cli/interrupt.h"
#include "app/cli/option_table.h"
#include "app/cli/progress.h"
#include "app/cli/report.h"
#include "app/cli/verbs/verbs.h"
#include "base/error.h"
#include "engine/model_bundle.h"
#include "io/files/xattention_thresholds.h"
#include "quant/thresholds.h"

namespace longspur::app::cli {

namespace {

using Clock = std::chrono::steady_clock;

struct Found {
  std::vector<quant::HeadProfile> heads;  // [layers, mask heads]
  std::vector<float> thresholds;          // likewise
  double density = 0, lost = 0, error = 0;
};

std::vector<std::vector<int32_t>> windows_of(const Settings& settings,
                                             const engine::ModelBundle& model,
                                             int64_t longest) {
  const std::string& source = settings.required("text");
  require(model.tokenizer != nullptr, "model '", settings.text("model"),
          "': found no tokenizer, expected one for --text");
  const int64_t asked = settings.integer("context");
  if (asked > longest)
    throw UsageError(concat("--context: found ", asked, ", expected at most ", longest));
  const auto window = size_t(asked > 0 ? asked : longest);
  std::vector<int32_t> ids = model.tokenizer->encode(read_file(source), {.special = false});
  ids.resize(std::min(ids.size(), size_t(settings.integer("max-tokens"))));
  require(ids.size() >= 512, source, ": found ", ids.size(),
          " tokens, expected at least 512: shorter prompts stay dense");
  std::vector<std::vector<int32_t>> windows;
  for (size_t begin = 0; begin < ids.size(); begin += window) {
    const size_t end = std::min(begin + window, ids.size());
    if (end - begin < 512) break;
    windows.emplace_back(ids.begin() + int64_t(begin), ids.begin() + int64_t(end));
  }
  return windows;
}

quant::ProfileOptions profile_options(const Settings& settings, int64_t longest) {
  quant::ProfileOptions options;
  options.select.block_size = settings.text("block") == "64" ? 64 : 128;
  options.estimator = kernels::xattn::parse_estimator(settings.text("estimator"), 16,
                                                      options.select.block_size, longest);
  options.per_head = settings.flag("per-head");
  options.candidates = quant::default_candidates();
  options.with_error = settings.text("loss") == "error" || settings.flag("with-error");
  return options;
}

// The means over heads of what the chosen (or the nearest profiled) thresholds list and lose.
void choose(const Settings& settings, Found& found) {
  if (settings.text("method") == "profiling") {
    for (const quant::HeadProfile& head : found.heads)
      found.thresholds.push_back(float(head.profiled));
    return;
  }
  const bool error = settings.text("loss") == "error";
  const auto chosen = quant::choose_thresholds(
      found.heads, error ? quant::Loss::kError : quant::Loss::kLost, settings.number("target"));
  for (size_t h = 0; h < chosen.size(); ++h) {
    const quant::ThresholdChoice& choice = found.heads[h].choices[chosen[h]];
    found.thresholds.push_back(choice.threshold);
    found.density += choice.density / double(chosen.size());
    found.lost += choice.lost / double(chosen.size());
    found.error += choice.error / double(chosen.size());
  }
}

io::XattentionThresholds table_of(const Settings& settings,
                                  const io::ModelConfig& config,
                                  const quant::ProfileOptions& options,
                                  const Found& found) {
  io::XattentionThresholds table;
  table.model_name = settings.text("model");
  table.model_name = table.model_name.substr(table.model_name.find_last_of('/') + 1);
  table.layers = config.layers;
  table.heads = config.heads;
  table.kv_heads = config.kv_heads;
  table.head_dim = config.head_dim;
  table.estimator = kernels::xattn::to_string(options.estimator);
  table.block_size = options.select.block_size;
  Json target = {{"method", settings.text("method")},
                 {"masks", options.per_head ? "query heads" : "kv heads"}};
  if (settings.text("method") == "knapsack") {
    target["loss"] = settings.text("loss");
    target["bound"] = settings.number("target");
    target["density"] = found.density;
    target["lost"] = found.lost;
  }
  table.target = target.dump();
  const auto mask_heads = int64_t(found.thresholds.size()) / config.layers;
  const int64_t shared = config.heads / mask_heads;
  for (const float threshold : found.thresholds)
    table.thresholds.insert(table.thresholds.end(), size_t(shared), threshold);
  return table;
}

void write_text(const std::string& path, const std::string& text) {
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  file << text << "\n";
  file.close();
  require(!file.fail(), path, ": cannot be written");
}

Json heads_json(const Found& found) {
  Json heads = Json::array();
  for (const quant::HeadProfile& head : found.heads) {
    Json choices = Json::array();
    for (const quant::ThresholdChoice& choice : head.choices) {
      choices.push_back({{"threshold", choice.threshold},
                         {"density", choice.density},
                         {"lost", choice.lost},
                         {"error", choice.error}});
    }
    heads.push_back({{"choices", choices}, {"profiled", head.profiled}});
  }
  return heads;
}

int run(const Settings& settings) {
  const std::string& output = settings.required("output");
  settings.required("text");
  check_can_create(output);
  const auto start = Clock::now();
  const engine::ModelBundle model = engine::open_model(settings.required("model"));
  const auto threads = int(settings.integer("threads"));
  ThreadPool pool(threads > 0 ? threads : available_threads());
  const quant::FloatDecoder decoder(model.config, model.tensors, pool);
  const quant::ProfileOptions options = profile_options(settings, decoder.max_window());
  const auto windows = windows_of(settings, model, decoder.max_window());
  Found found;
  {
    Progress progress("calibrate");
    found.heads = quant::profile_thresholds(
        decoder, model.tensors, windows, options, [&](int64_t done, int64_t total) {
          check_interrupt();
          progress.update(double(done), double(total), concat("layer ", done, " of ", total));
        });
  }
  choose(settings, found);
  write_text(output,
             io::xattention_thresholds_json(table_of(settings, model.config, options, found)));
  const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
  double mean = 0;
  for (const float threshold : found.thresholds)
    mean += double(threshold) / double(found.thresholds.size());
  const bool knapsack = settings.text("method") == "knapsack";
  if (settings.flag("json")) {
    Json json = {{"file", output},
                 {"estimator", kernels::xattn::to_string(options.estimator)},
                 {"mean_threshold", mean},
                 {"windows", windows.size()},
                 {"seconds", seconds}};
    if (knapsack) {
      json["density"] = found.density;
      json["lost"] = found.lost;
      if (options.with_error) json["error"] = found.error;
    }
    if (settings.flag("tables")) json["heads"] = heads_json(found);
    write_json(json);
  } else {
    std::string text = concat(output, ": mean threshold ", mean);
    if (knapsack) text += concat(", density ", found.density, ", lost mass ", found.lost);
    write_stdout(text + "\n");
  }
  return 0;
}

std::vector<Option> text_options() {
  const std::string group = "Input and output";
  return {
      {.name = "text",
       .group = group,
       .help = "text of the kind that prompts will hold (- for stdin)",
       .placeholder = "FILE",
       .completes = Completes::kFile},
      {.name = "output",
       .group = group,
       .help = "the thresholds, JSON, for --xattn-thresholds",
       .placeholder = "FILE",
       .letter = 'o',
       .completes = Completes::kFile},
      {.name = "context",
       .type = OptionType::kInteger,
       .fallback = "0",
       .group = group,
       .help = "tokens a window; 0: the model's context",
       .placeholder = "N",
       .letter = 'c',
       .low = 0},
      {.name = "max-tokens",
       .type = OptionType::kInteger,
       .fallback = "16384",
       .group = group,
       .help = "only the first N tokens of the text",
       .placeholder = "N",
       .low = 512},
      {.name = "tables",
       .type = OptionType::kFlag,
       .group = group,
       .help = "with --json: what every threshold of every head would list and lose"},
      {.name = "with-error",
       .type = OptionType::kFlag,
       .group = group,
       .help = "measure the output's error too (implied by --loss error)"},
      threads_option(group),
  };
}

std::vector<Option> method_options() {
  const std::string group = "Thresholds";
  return {
      {.name = "estimator",
       .fallback = "default",
       .group = group,
       .help =
           "of the blocks' importance: terms such as sampled:16 or antidiagonal:16, added with +",
       .placeholder = "TERMS"},
      {.name = "block",
       .fallback = "128",
       .group = group,
       .help = "keys a block",
       .placeholder = "N",
       .choices = {"64", "128"}},
      {.name = "method",
       .fallback = "knapsack",
       .group = group,
       .help = "knapsack: the least density within --target; profiling: the authors' released rule",
       .placeholder = "METHOD",
       .choices = {"knapsack", "profiling"}},
      {.name = "loss",
       .fallback = "mass",
       .group = group,
       .help = "what --target bounds: attention mass that is lost, or the output's relative error",
       .placeholder = "KIND",
       .choices = {"mass", "error"}},
      {.name = "target",
       .type = OptionType::kNumber,
       .fallback = "0.05",
       .group = group,
       .help = "mean loss over heads that is allowed",
       .placeholder = "X",
       .low = 0,
       .high = 1},
      {.name = "per-head",
       .type = OptionType::kFlag,
       .group = group,
       .help = "a threshold for each query head, not for each KV head"},
  };
}

std::vector<Option> own_options() {
  std::vector<Option> options = text_options();
  for (Option& option : method_options()) options.push_back(std::move(option));
  return options;
}

}  // namespace

Verb calibrate_verb() {
  return {
      .name = "calibrate",
      .summary = "finds XAttention's thresholds for each layer and head of a model",
      .details =
          "One dense pass over the text records, for each head and candidate threshold, the share "
          "of blocks that would be listed and the attention mass that would be lost; the "
          "thresholds of least density within the target are written. --json: file, estimator, "
          "density, lost, error, mean_threshold, windows, seconds, with --tables heads.",
      .examples = {"longspur calibrate --text corpus.txt -o thresholds.json",
                   "longspur calibrate -m MODEL --text corpus.txt -o t.json --target 0.02",
                   "longspur generate --attention xattention --xattn-thresholds t.json ..."},
      .options = verb_options(own_options(), {OptionGroup::kModel}),
      .run = run,
  };
}

}  // namespace longspur::app::cli
