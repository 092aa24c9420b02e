#include "app/cli/option_table.h"

#include <algorithm>

#include "base/error.h"

namespace longspur::app::cli {

namespace {

void append(std::vector<Option>& table, std::vector<Option> options) {
  for (Option& option : options) table.push_back(std::move(option));
}

std::vector<Option> model_options() {
  return {
      {.name = "model",
       .fallback = "smollm2",
       .group = "Model",
       .help = "Hugging Face folder, .gguf file or known name (smollm2)",
       .placeholder = "MODEL",
       .letter = 'm',
       .completes = Completes::kModel},
  };
}

std::vector<Option> compute_options(const std::string& group) {
  return {
      {.name = "device",
       .fallback = "cpu",
       .group = group,
       .help = "cpu, cuda or cuda:INDEX",
       .placeholder = "DEVICE"},
      threads_option(group),
      {.name = "compute",
       .fallback = "default",
       .group = group,
       .help = "fp32: weights dequantised, all arithmetic in fp32 (the slow reference)",
       .placeholder = "MODE",
       .choices = {"default", "fp32"}},
      {.name = "activations",
       .fallback = "default",
       .group = group,
       .help = "of NVFP4 layers: default (8 bits), nvfp4 or nvfp4:RULE (static_6, sweep, ...)",
       .placeholder = "TYPE"},
      {.name = "attention",
       .fallback = "dense",
       .group = group,
       .help = "which attention the heads use",
       .placeholder = "KIND",
       .choices = {"dense", "xattention", "duo", "moba", "duo+xattention"}},
  };
}

std::vector<Option> memory_options(const std::string& group) {
  return {
      {.name = "kv-type",
       .fallback = "bf16",
       .group = group,
       .help = "how keys and values are stored",
       .placeholder = "TYPE",
       .choices = {"bf16", "nvfp4"}},
      {.name = "max-context",
       .type = OptionType::kInteger,
       .fallback = "0",
       .group = group,
       .help = "tokens of prompt and answer that one sequence may have; 0: the model's own limit",
       .placeholder = "N",
       .low = 0,
       .high = double(int64_t(1) << 24)},
      {.name = "max-sequences",
       .type = OptionType::kInteger,
       .fallback = "0",
       .group = group,
       .help = "sequences in flight at once; 0: 16 with --input, else 1",
       .placeholder = "N",
       .low = 0,
       .high = 4096},
      {.name = "prefill-chunk",
       .type = OptionType::kInteger,
       .fallback = "512",
       .group = group,
       .help = "prompt tokens a step",
       .placeholder = "N",
       .low = 1,
       .high = 65536},
      {.name = "kv-bytes",
       .type = OptionType::kInteger,
       .fallback = "0",
       .group = group,
       .help = "budget of the cache; 0: enough for all sequences, at most half of the free memory",
       .placeholder = "BYTES",
       .low = 0},
  };
}

std::vector<Option> selection_options(const std::string& group) {
  return {
      {.name = "xattn-threshold",
       .type = OptionType::kNumber,
       .group = group,
       .help = "share of a prompt's attention that the chosen blocks of keys are to hold, 0 to 1; "
               "1: dense; 0.95 unless --xattn-thresholds is given",
       .placeholder = "X"},
      {.name = "xattn-thresholds",
       .group = group,
       .help = "JSON file of thresholds for each layer and head (longspur calibrate writes it)",
       .placeholder = "FILE",
       .completes = Completes::kFile},
      {.name = "xattn-estimator",
       .group = group,
       .help = "how blocks are scored, such as sampled:16, antidiagonal:16 or "
               "pooled:128+sampled:128+mean; default: by the prompt's length",
       .placeholder = "TERMS"},
      {.name = "xattn-block",
       .type = OptionType::kInteger,
       .group = group,
       .help = "keys a block: 64 or 128; 128 unless the file of thresholds says otherwise",
       .placeholder = "N"},
      {.name = "xattn-rule",
       .group = group,
       .help = "share: the fewest blocks that hold the threshold (the default); of_max: all blocks "
               "with that share of the largest score",
       .placeholder = "RULE",
       .choices = {"share", "of_max"}},
      {.name = "xattn-guard",
       .type = OptionType::kNumber,
       .fallback = "1",
       .group = group,
       .help = "128 queries that miss more than this share of attention, by estimate, read more "
               "blocks; 1: off",
       .placeholder = "X"},
  };
}

std::vector<Option> dense_options(const std::string& group) {
  const double most_tokens = double(int64_t(1) << 24);
  return {
      {.name = "xattn-sink",
       .type = OptionType::kInteger,
       .fallback = "1",
       .group = group,
       .help = "blocks at the beginning that are always read",
       .placeholder = "N",
       .low = 0,
       .high = 1 << 20},
      {.name = "xattn-local",
       .type = OptionType::kInteger,
       .fallback = "1",
       .group = group,
       .help = "blocks before and at the queries that are always read",
       .placeholder = "N",
       .low = 0,
       .high = 1 << 20},
      {.name = "xattn-masks",
       .fallback = "group",
       .group = group,
       .help = "heads that choose together: those of a key/value head, or each its own",
       .placeholder = "WHO",
       .choices = {"group", "head"}},
      {.name = "xattn-mean-correction",
       .type = OptionType::kFlag,
       .group = group,
       .help = "a block that is not read still counts, as its mean key and value (CPU)"},
      {.name = "xattn-first-layers-dense",
       .type = OptionType::kInteger,
       .fallback = "0",
       .group = group,
       .help = "the first N layers stay dense",
       .placeholder = "N",
       .low = 0,
       .high = 1 << 20},
      {.name = "xattn-last-dense",
       .type = OptionType::kInteger,
       .fallback = "128",
       .group = group,
       .help = "the last N tokens of a prompt read everything",
       .placeholder = "N",
       .low = 0,
       .high = most_tokens},
      {.name = "xattn-min-length",
       .type = OptionType::kInteger,
       .group = group,
       .help = "queries before this position read everything; unless given, those for which "
               "choosing blocks costs more than it saves",
       .placeholder = "N",
       .low = 0,
       .high = most_tokens},
  };
}

std::vector<Option> engine_options() {
  std::vector<Option> options = compute_options("Engine");
  append(options, memory_options("Engine"));
  append(options, selection_options("Sparse attention (--attention xattention)"));
  append(options, dense_options("Sparse attention (--attention xattention)"));
  return options;
}

std::vector<Option> length_options(const std::string& group) {
  return {
      {.name = "max-tokens",
       .type = OptionType::kInteger,
       .fallback = "256",
       .group = group,
       .help = "tokens to generate at most",
       .placeholder = "N",
       .letter = 'n',
       .low = 1},
      {.name = "min-tokens",
       .type = OptionType::kInteger,
       .fallback = "0",
       .group = group,
       .help = "end-of-text and stop ids are not sampled before",
       .placeholder = "N",
       .low = 0},
      {.name = "stop",
       .type = OptionType::kTextList,
       .group = group,
       .help = "the answer ends before this text; may be repeated",
       .placeholder = "TEXT"},
      {.name = "stop-id",
       .type = OptionType::kIntegerList,
       .group = group,
       .help = "this token id ends the answer; may be repeated",
       .placeholder = "ID",
       .low = 0},
      {.name = "ignore-eos",
       .type = OptionType::kFlag,
       .group = group,
       .help = "go on after the model's end-of-text token"},
  };
}

std::vector<Option> choice_options(const std::string& group) {
  return {
      {.name = "temperature",
       .type = OptionType::kNumber,
       .fallback = "0",
       .group = group,
       .help = "0: always the most likely token",
       .placeholder = "X",
       .letter = 't',
       .low = 0},
      {.name = "top-k",
       .type = OptionType::kInteger,
       .fallback = "0",
       .group = group,
       .help = "sample among the K most likely tokens; 0: off",
       .placeholder = "K",
       .low = 0},
      {.name = "top-p",
       .type = OptionType::kNumber,
       .fallback = "1",
       .group = group,
       .help = "sample among the most likely tokens that hold this share of probability",
       .placeholder = "X"},
      {.name = "min-p",
       .type = OptionType::kNumber,
       .fallback = "0",
       .group = group,
       .help = "drop tokens below this share of the most likely one's probability",
       .placeholder = "X"},
      {.name = "seed",
       .type = OptionType::kInteger,
       .fallback = "0",
       .group = group,
       .help = "of the random numbers; the same seed gives the same text",
       .placeholder = "N",
       .low = 0},
  };
}

std::vector<Option> penalty_options(const std::string& group) {
  return {
      {.name = "repetition-penalty",
       .type = OptionType::kNumber,
       .fallback = "1",
       .group = group,
       .help = "divides the logits of tokens seen in prompt or answer; 1: off",
       .placeholder = "X"},
      {.name = "presence-penalty",
       .type = OptionType::kNumber,
       .fallback = "0",
       .group = group,
       .help = "subtracted from the logits of tokens in the answer",
       .placeholder = "X"},
      {.name = "frequency-penalty",
       .type = OptionType::kNumber,
       .fallback = "0",
       .group = group,
       .help = "the same, once for each time the token occurs",
       .placeholder = "X"},
      {.name = "logit-bias",
       .type = OptionType::kTextList,
       .group = group,
       .help = "added to the logit of a token, -inf bans it; may be repeated",
       .placeholder = "ID:VALUE"},
      {.name = "logprobs",
       .type = OptionType::kInteger,
       .group = group,
       .help = "with --json: log-probability of each token and of the K most likely ones",
       .placeholder = "K",
       .low = 0},
  };
}

std::vector<Option> sampling_options() {
  std::vector<Option> options = length_options("Answer");
  append(options, choice_options("Sampling"));
  append(options, penalty_options("Sampling"));
  return options;
}

std::vector<Option> common_options() {
  const std::string group = "Common";
  return {
      {.name = "json",
       .type = OptionType::kFlag,
       .group = group,
       .help = "one JSON object on stdout, nothing else"},
      {.name = "log-level",
       .fallback = "warn",
       .group = group,
       .help = "what is logged to stderr",
       .placeholder = "LEVEL",
       .choices = {"trace", "debug", "info", "warn", "error", "off"}},
      {.name = "config",
       .group = group,
       .help = "TOML file of settings; unknown keys are errors (or LONGSPUR_CONFIG)",
       .placeholder = "FILE",
       .only_flag = true,
       .completes = Completes::kFile},
      {.name = "print-config",
       .type = OptionType::kFlag,
       .group = group,
       .help = "print the effective settings as TOML and stop",
       .only_flag = true},
      {.name = "help",
       .type = OptionType::kFlag,
       .group = group,
       .help = "this text",
       .letter = 'h',
       .only_flag = true},
  };
}

std::vector<Option> group_options(OptionGroup group) {
  switch (group) {
    case OptionGroup::kModel:
      return model_options();
    case OptionGroup::kEngine:
      return engine_options();
    case OptionGroup::kSampling:
      return sampling_options();
  }
  throw InternalError("group_options: found a value outside the enum");
}

}  // namespace

Option threads_option(const std::string& group) {
  return {.name = "threads",
          .type = OptionType::kInteger,
          .fallback = "0",
          .group = group,
          .help = "CPU threads; 0: all that this process may use",
          .placeholder = "N",
          .low = 0,
          .high = 1024};
}

std::vector<Option> verb_options(
    std::vector<Option> own,
    std::initializer_list<OptionGroup> groups,
    std::initializer_list<std::pair<std::string_view, std::string_view>> defaults) {
  std::vector<Option> table = std::move(own);
  for (const OptionGroup group : groups) append(table, group_options(group));
  append(table, common_options());
  for (const auto& [name, fallback] : defaults) {
    const auto same = [name = name](const Option& option) { return option.name == name; };
    const auto found = std::find_if(table.begin(), table.end(), same);
    LONGSPUR_ASSERT(found != table.end());
    found->fallback = fallback;
  }
  return table;
}

}  // namespace longspur::app::cli
