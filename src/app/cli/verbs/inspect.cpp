// `longspur inspect`: what a model's files hold, and the memory a run will take, before anything is
// loaded.
#include <algorithm>

#include "app/cli/console.h"
#include "app/cli/model.h"
#include "app/cli/model_summary.h"
#include "app/cli/option_table.h"
#include "app/cli/verbs/verbs.h"
#include "base/error.h"

namespace longspur::app::cli {

namespace {

std::string run_text(const engine::EngineOptions& options) {
  return concat(options.max_sequences, options.max_sequences == 1 ? " sequence" : " sequences",
                " on ", options.device,
                options.compute == engine::Compute::kFp32 ? " in fp32" : "");
}

int run(const Settings& settings) {
  const engine::EngineOptions options = engine_options(settings);
  const engine::ModelBundle model = engine::open_model(options.model, false);
  const ModelSummary summary = summarize(options, model);
  const bool list = settings.flag("tensors");
  if (settings.flag("json")) {
    nlohmann::ordered_json json = summary_json(model, summary, options.max_sequences);
    if (list) json["tensors"] = tensors_json(model);
    write_json(json);
  } else {
    write_stdout(summary_text(model, summary, run_text(options)));
    if (list) write_stdout(concat("\n", tensors_text(model)));
  }
  return 0;
}

std::vector<Option> options_of_verb() {
  std::vector<Option> options = verb_options({{.name = "tensors",
                                               .type = OptionType::kFlag,
                                               .group = "Output",
                                               .help = "list every tensor: type, bytes, shape"}},
                                             {OptionGroup::kModel, OptionGroup::kEngine});
  const auto model = std::find_if(options.begin(), options.end(),
                                  [](const Option& option) { return option.name == "model"; });
  model->positional = true;
  return options;
}

}  // namespace

Verb inspect_verb() {
  return {
      .name = "inspect",
      .summary = "shows what a model file holds and the memory it will need",
      .details =
          "Reads headers only, so it is quick whatever the model's size. The memory is what a run "
          "with the same --max-context, --max-sequences, --compute and --device would plan: "
          "weights as they are kept, the cache, and workspace. --json: architecture and sizes, "
          "rope, tokenizer, tensor_types, memory, and with --tensors tensors.",
      .examples = {"longspur inspect smollm2",
                   "longspur inspect model.gguf --max-context 4096 --max-sequences 8",
                   "longspur inspect ~/models/Qwen3-0.6B --tensors --json"},
      .options = options_of_verb(),
      .run = run,
  };
}

}  // namespace longspur::app::cli
