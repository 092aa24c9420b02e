// `longspur logits`: the model's raw output for given token ids, into a safetensors file.

#include <algorithm>

#include "app/cli/console.h"
#include "app/cli/interrupt.h"
#include "app/cli/model.h"
#include "app/cli/option_table.h"
#include "app/cli/progress.h"
#include "app/cli/report.h"
#include "app/cli/token_lists.h"
#include "app/cli/verbs/verbs.h"
#include "base/error.h"
#include "io/files/safetensors_writer.h"

namespace longspur::app::cli {

namespace {

using TokenLists = std::vector<std::vector<int32_t>>;

int64_t longest(const TokenLists& lists) {
  size_t most = 0;
  for (const std::vector<int32_t>& ids : lists) most = std::max(most, ids.size());
  return int64_t(most);
}

std::vector<io::TensorToWrite> declare(const TokenLists& lists, int64_t vocab, bool last) {
  std::vector<io::TensorToWrite> tensors;
  for (const std::vector<int32_t>& ids : lists) {
    const int64_t rows = last ? 1 : int64_t(ids.size());
    tensors.push_back(
        {concat("logits_", tensors.size()), DType::kF32, {rows, vocab}, {}});  // [T, V]
  }
  return tensors;
}

void write_rows(engine::Engine& engine,
                const TokenLists& lists,
                bool last,
                io::SafetensorsWriter& writer) {
  const auto vocab = size_t(engine.config().vocab);
  int64_t total = 0, done = 0;
  for (const auto& ids : lists) total += int64_t(ids.size());
  Progress progress("logits");
  for (const std::vector<int32_t>& ids : lists) {
    engine.logits(ids, last ? int64_t(ids.size()) - 1 : 0,
                  [&](int64_t first, int64_t rows, const float* logits) {
                    check_interrupt();
                    writer.append(std::as_bytes(std::span(logits, size_t(rows) * vocab)));
                    progress.update(double(done + first + rows), double(total),
                                    concat(done + first + rows, " of ", total, " tokens"));
                  });
    done += int64_t(ids.size());
  }
}

int run(const Settings& settings) {
  const std::string& source = settings.required("tokens");
  const std::string& output = settings.required("output");
  const std::string text = read_file(source);
  check_can_create(output);
  engine::EngineOptions options = engine_options(settings);
  const ModelLimits limits = model_limits(options);
  const TokenLists lists = parse_token_lists(text, source, limits.vocab, limits.context);
  options.max_context = longest(lists);  // all that the cache needs to hold
  const auto engine = load_engine(options);
  const bool last = settings.flag("last");
  const auto tensors = declare(lists, limits.vocab, last);
  io::SafetensorsWriter writer(output, tensors, {{"format", "pt"}});
  write_rows(*engine, lists, last, writer);
  writer.commit();
  Json shapes = Json::object();
  for (const io::TensorToWrite& tensor : tensors) shapes[tensor.name] = tensor.shape;
  if (settings.flag("json")) {
    write_json({{"files", Json::array({output})},
                {"shapes", std::move(shapes)},
                {"timing", timing_json(engine->stats())},
                {"memory", memory_json(engine->stats())},
                {"attention", attention_json(settings, engine->stats())}});
  } else {
    write_stdout(concat("wrote ", tensors.size(), " tensors to ", output, "\n"));
  }
  return 0;
}

std::vector<Option> own_options() {
  const std::string group = "Input and output";
  return {
      {.name = "tokens",
       .group = group,
       .help = "JSON list of lists of token ids (- for stdin)",
       .placeholder = "FILE",
       .completes = Completes::kFile},
      {.name = "output",
       .group = group,
       .help = "safetensors file with logits_0, logits_1, ... of shape [T, V] in fp32",
       .placeholder = "FILE",
       .letter = 'o',
       .completes = Completes::kFile},
      {.name = "last",
       .type = OptionType::kFlag,
       .group = group,
       .help = "only the last row of each list"},
  };
}

}  // namespace

Verb logits_verb() {
  return {
      .name = "logits",
      .summary = "writes the model's logits for token ids into a safetensors file",
      .details =
          "The file appears whole or not at all. --json: files, shapes, timing, memory, attention.",
      .examples = {"longspur logits --tokens ids.json --output logits.safetensors",
                   "longspur logits --tokens ids.json --output last.safetensors --last "
                   "--compute fp32"},
      .options = verb_options(own_options(), {OptionGroup::kModel, OptionGroup::kEngine}),
      .run = run,
  };
}

}  // namespace longspur::app::cli
