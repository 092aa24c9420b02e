// A model's summary as JSON and as lines for a person.
#include <fmt/format.h>

#include <algorithm>

#include "app/cli/console.h"
#include "app/cli/model_summary.h"

namespace longspur::app::cli {

namespace {

using Json = nlohmann::ordered_json;

std::string_view rope_kind_name(io::RopeScaling::Kind kind) {
  switch (kind) {
    case io::RopeScaling::Kind::kNone:
      return "none";
    case io::RopeScaling::Kind::kLinear:
      return "linear";
    case io::RopeScaling::Kind::kDynamic:
      return "dynamic";
    case io::RopeScaling::Kind::kLlama3:
      return "llama3";
    case io::RopeScaling::Kind::kYarn:
      return "yarn";
  }
  return "unknown";
}

// The window of the layers that have one, and how many those are.
struct Windows {
  int64_t tokens = 0, layers = 0;
};

Windows windows_of(const io::ModelConfig& config) {
  Windows windows;
  for (const int64_t window : config.sliding_window) {
    windows.tokens = std::max(windows.tokens, window);
    windows.layers += window > 0 ? 1 : 0;
  }
  return windows;
}

// "1.23 GB", with three digits.
std::string size_text(int64_t bytes) {
  constexpr const char* kUnits[] = {"B", "KB", "MB", "GB", "TB", "PB"};
  double value = double(bytes);
  size_t unit = 0;
  for (; value >= 999.5 && unit + 1 < std::size(kUnits); ++unit) value /= 1000;
  if (unit == 0) return fmt::format("{} B", bytes);
  return fmt::format("{:.{}f} {}", value, value < 9.995 ? 2 : value < 99.95 ? 1 : 0, kUnits[unit]);
}

std::string count_text(int64_t count) {
  if (count >= 1'000'000'000) return fmt::format("{:.2f} G", double(count) / 1e9);
  if (count >= 1'000'000) return fmt::format("{:.1f} M", double(count) / 1e6);
  return fmt::format("{}", count);
}

std::string line(std::string_view what, const std::string& value) {
  return fmt::format("{:<15}{}\n", what, one_line(value));
}

Json memory_json(const ModelSummary& summary, int64_t sequences) {
  const engine::MemoryPlan& plan = summary.memory.plan;
  Json json = {{"context", summary.context},
               {"sequences", sequences},
               {"weights_bytes", plan.weights_bytes},
               {"kv_bytes_per_token", plan.kv_bytes_per_token},
               {"kv_bytes", plan.kv_bytes},
               {"kv_tokens", plan.kv_bytes / plan.kv_bytes_per_token},
               {"workspace_bytes", plan.workspace_bytes},
               {"total_bytes", summary.memory.total_bytes},
               {"fits", summary.memory.refusal.empty()}};
  if (!summary.memory.refusal.empty()) json["refusal"] = summary.memory.refusal;
  return json;
}

Json tokenizer_json(const TokenizerSummary& tokenizer) {
  if (tokenizer.model.empty()) return nullptr;
  Json json = {{"model", tokenizer.model}};
  json["kind"] = tokenizer.kind.empty() ? Json(nullptr) : Json(tokenizer.kind);
  json["pre"] = tokenizer.pre.empty() ? Json(nullptr) : Json(tokenizer.pre);
  return json;
}

Json rope_json(const io::ModelConfig& config) {
  Json json = {{"theta", config.rope_theta},
               {"dim", config.rotary_dim},
               {"scaling", rope_kind_name(config.rope_scaling.kind)}};
  if (config.rope_scaling.kind != io::RopeScaling::Kind::kNone) {
    json["factor"] = config.rope_scaling.factor;
    json["original_context"] = config.rope_scaling.original_max_position > 0
                                   ? config.rope_scaling.original_max_position
                                   : config.max_position;
  }
  json["frequency_factors"] = !config.rope_freq_factors.empty();
  return json;
}

std::string rope_text(const io::ModelConfig& config) {
  std::string text = fmt::format("theta {:g}", config.rope_theta);
  if (config.rotary_dim != config.head_dim)
    text += fmt::format(", first {} of each head", config.rotary_dim);
  if (config.rope_scaling.kind == io::RopeScaling::Kind::kNone) return text + ", no scaling";
  return text + fmt::format(", scaling {} by {:g}", rope_kind_name(config.rope_scaling.kind),
                            config.rope_scaling.factor);
}

std::string window_text(const io::ModelConfig& config) {
  const Windows windows = windows_of(config);
  if (windows.layers == 0) return "none";
  return fmt::format("{} tokens in {} of {} layers", windows.tokens, windows.layers, config.layers);
}

std::string tokenizer_text(const TokenizerSummary& tokenizer) {
  if (tokenizer.model.empty()) return "none";
  std::string names = tokenizer.model;
  if (!tokenizer.pre.empty()) names += ", " + tokenizer.pre;
  return tokenizer.kind.empty() ? names : fmt::format("{} ({})", tokenizer.kind, names);
}

std::string template_text(const engine::ModelBundle& model, const ModelSummary& summary) {
  if (model.chat_template.empty()) return "no";
  if (summary.template_error.empty()) return "yes";
  return "yes, but it cannot be used: " + summary.template_error;
}

std::string memory_text(const ModelSummary& summary, const std::string& run) {
  const engine::MemoryPlan& plan = summary.memory.plan;
  std::string out = fmt::format("memory for {}, up to {} tokens each\n", run, summary.context);
  out += line("  weights", size_text(plan.weights_bytes));
  out += line("  cache", fmt::format("{} ({} tokens of {})", size_text(plan.kv_bytes),
                                     plan.kv_bytes / plan.kv_bytes_per_token,
                                     size_text(plan.kv_bytes_per_token)));
  out += line("  workspace", size_text(plan.workspace_bytes));
  out += line("  together", size_text(summary.memory.total_bytes));
  if (!summary.memory.refusal.empty()) out += line("  does not fit", summary.memory.refusal);
  return out;
}

std::string shape_text(const std::vector<int64_t>& shape) {
  return fmt::format("[{}]", fmt::join(shape, ", "));
}

}  // namespace

Json summary_json(const engine::ModelBundle& model,
                  const ModelSummary& summary,
                  int64_t sequences) {
  const io::ModelConfig& config = model.config;
  const Windows windows = windows_of(config);
  Json groups = Json::array();
  for (const TensorGroup& group : summary.groups)
    groups.push_back({{"dtype", dtype_info(group.dtype).name},
                      {"count", group.count},
                      {"elements", group.elements},
                      {"bytes", group.bytes}});
  Json json = {{"path", summary.path},
               {"format", summary.gguf ? "gguf" : "safetensors"},
               {"file_bytes", model.file->file_bytes()},
               {"name", config.name},
               {"architecture", io::architecture_name(config.architecture)},
               {"parameters", summary.parameters},
               {"bits_per_weight", summary.bits_per_weight()},
               {"layers", config.layers},
               {"hidden", config.hidden},
               {"intermediate", config.intermediate},
               {"heads", config.heads},
               {"kv_heads", config.kv_heads},
               {"head_dim", config.head_dim},
               {"context", config.max_position},
               {"vocab", config.vocab},
               {"tied_embeddings", config.tied_embeddings}};
  json["rope"] = rope_json(config);
  json["sliding_window"] = windows.layers == 0 ? Json(nullptr) : Json(windows.tokens);
  json["sliding_window_layers"] = windows.layers;
  json["tokenizer"] = tokenizer_json(summary.tokenizer);
  json["chat_template"] = !model.chat_template.empty();
  if (!summary.template_error.empty()) json["chat_template_error"] = summary.template_error;
  json["eos_ids"] = model.defaults.eos_ids;
  json["tensor_count"] = summary.tensors;
  json["tensor_types"] = std::move(groups);
  json["memory"] = memory_json(summary, sequences);
  return json;
}

Json tensors_json(const engine::ModelBundle& model) {
  Json tensors = Json::array();
  for (const io::TensorInfo& tensor : model.file->tensors())
    tensors.push_back({{"name", tensor.name},
                       {"dtype", dtype_info(tensor.dtype).name},
                       {"shape", tensor.shape},
                       {"bytes", tensor.data.size()}});
  return tensors;
}

std::string summary_text(const engine::ModelBundle& model,
                         const ModelSummary& summary,
                         const std::string& run) {
  const io::ModelConfig& config = model.config;
  std::string out;
  if (!config.name.empty()) out += line("name", config.name);
  out += line("file", fmt::format("{}, {}, {}", summary.path, summary.gguf ? "GGUF" : "safetensors",
                                  size_text(model.file->file_bytes())));
  out += line("architecture", std::string(io::architecture_name(config.architecture)));
  out += line("parameters", fmt::format("{}, {:.2f} bits each", count_text(summary.parameters),
                                        summary.bits_per_weight()));
  out += line("layers", fmt::format("{}, hidden size {}, intermediate size {}", config.layers,
                                    config.hidden, config.intermediate));
  out += line("heads", fmt::format("{} of size {}, {} for keys and values", config.heads,
                                   config.head_dim, config.kv_heads));
  out += line("context", fmt::format("{} tokens", config.max_position));
  out += line("rope", rope_text(config));
  out += line("sliding window", window_text(config));
  out += line("vocabulary", fmt::format("{}, input and output embeddings {}", config.vocab,
                                        config.tied_embeddings ? "shared" : "separate"));
  out += line("tokenizer", tokenizer_text(summary.tokenizer));
  out += line("chat template", template_text(model, summary));
  out += line("tensors", fmt::format("{}", summary.tensors));
  for (const TensorGroup& group : summary.groups)
    out += line(fmt::format("  {}", dtype_info(group.dtype).name),
                fmt::format("{:>5}  {}", group.count, size_text(group.bytes)));
  return out + memory_text(summary, run);
}

std::string tensors_text(const engine::ModelBundle& model) {
  size_t width = 0;
  for (const io::TensorInfo& tensor : model.file->tensors())
    width = std::max(width, one_line(tensor.name).size());
  std::string out;
  for (const io::TensorInfo& tensor : model.file->tensors())
    out += fmt::format("{:<{}}  {:<6} {:>12}  {}\n", one_line(tensor.name), width,
                       dtype_info(tensor.dtype).name, tensor.data.size(), shape_text(tensor.shape));
  return out;
}

}  // namespace longspur::app::cli
