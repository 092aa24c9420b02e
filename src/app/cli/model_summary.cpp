#include "app/cli/model_summary.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <set>

#include "base/error.h"
#include "engine/memory_plan.h"
#include "io/chat/chat_template.h"

namespace longspur::app::cli {

namespace {

constexpr std::string_view kByteLevel = "byte-level BPE";
constexpr std::string_view kSentencePiece = "SentencePiece-style BPE";
// A budget no machine has: the plan then says what is needed instead of refusing.
constexpr int64_t kAnyBudget = int64_t(1) << 45;

TokenizerSummary gguf_tokenizer(const io::GgufFile& file) {
  TokenizerSummary summary;
  summary.model = file.get_string("tokenizer.ggml.model", "");
  summary.pre = file.get_string("tokenizer.ggml.pre", "");
  if (summary.model == "gpt2") summary.kind = kByteLevel;
  if (summary.model == "llama") summary.kind = kSentencePiece;
  return summary;
}

// tokenizer.json without its large members, which may hold a million strings.
nlohmann::json without_vocabulary(std::istream& file) {
  static const std::set<std::string> kLarge = {"vocab", "merges", "added_tokens"};
  const auto keep = [](int, nlohmann::json::parse_event_t event, nlohmann::json& value) {
    return event != nlohmann::json::parse_event_t::key || !value.is_string() ||
           !kLarge.contains(value.get_ref<const std::string&>());
  };
  return nlohmann::json::parse(file, keep, false);
}

TokenizerSummary hf_tokenizer(const std::filesystem::path& folder) {
  const std::filesystem::path path = folder / "tokenizer.json";
  if (!std::filesystem::is_regular_file(path)) return {};
  std::ifstream file(path, std::ios::binary);
  require(bool(file), path.string(), ": cannot be read");
  const nlohmann::json json = without_vocabulary(file);
  require(json.is_object(), path.string(), ": found no JSON object");
  TokenizerSummary summary;
  const auto model = json.find("model");
  if (model != json.end() && model->is_object() && model->contains("type") &&
      (*model)["type"].is_string())
    summary.model = (*model)["type"].get<std::string>();
  if (summary.model != "BPE") return summary;
  // Pieces of bytes are what the ByteLevel step or decoder makes of them, wherever it stands.
  const auto decoder = json.find("decoder");
  const auto pre = json.find("pre_tokenizer");
  const auto names_bytes = [&](const auto& part) {
    return part != json.end() &&
           part->dump(-1, ' ', false, nlohmann::json::error_handler_t::replace)
                   .find("\"ByteLevel\"") != std::string::npos;
  };
  summary.kind = names_bytes(decoder) || names_bytes(pre) ? kByteLevel : kSentencePiece;
  return summary;
}

// Adds `elements` values of a type to its group.
void add_to_groups(std::vector<TensorGroup>& groups, DType dtype, int64_t elements, int64_t bytes) {
  const auto same = [&](const TensorGroup& group) { return group.dtype == dtype; };
  auto group = std::find_if(groups.begin(), groups.end(), same);
  if (group == groups.end()) group = groups.insert(group, {dtype});
  ++group->count;
  group->elements += elements;
  group->bytes += bytes;
}

// NVFP4 matrices count as such, whatever parts a file stores them in.
std::vector<TensorGroup> group_tensors(const engine::ModelBundle& model) {
  std::vector<TensorGroup> groups;
  std::set<const io::TensorInfo*> parts;
  const auto add_nvfp4 = [&](const auto& source) {
    if (!source.nvfp4) return;
    parts.insert({source.nvfp4->codes, source.nvfp4->scales});
    add_to_groups(groups, DType::kNVFP4, source.n() * source.k(), source.stored_bytes());
  };
  add_nvfp4(model.tensors.embedding);
  add_nvfp4(model.tensors.head);
  for (const auto& t : model.tensors.layers)
    for (const auto* source : {&t.q, &t.k, &t.v, &t.output, &t.gate, &t.up, &t.down})
      add_nvfp4(*source);
  for (const io::TensorInfo& tensor : model.file->tensors())
    if (!parts.contains(&tensor))
      add_to_groups(groups, tensor.dtype, tensor.elements(), int64_t(tensor.data.size()));
  std::stable_sort(groups.begin(), groups.end(),
                   [](const TensorGroup& a, const TensorGroup& b) { return a.bytes > b.bytes; });
  return groups;
}

MemoryNeeds memory_needs(const engine::EngineOptions& options, const engine::ModelBundle& model) {
  MemoryNeeds needs;
  try {
    needs.plan = plan_memory(options, model.config, model.tensors).bytes;
  } catch (const UsageError&) {
    throw;
  } catch (const UnsupportedError&) {
    throw;
  } catch (const Error& error) {
    needs.refusal = error.what();
    engine::EngineOptions unlimited = options;
    unlimited.kv_bytes = kAnyBudget;
    needs.plan = plan_memory(unlimited, model.config, model.tensors).bytes;
  }
  needs.total_bytes = needs.plan.weights_bytes + needs.plan.kv_bytes + needs.plan.workspace_bytes;
  return needs;
}

std::string template_problem(const std::string& source) {
  if (source.empty()) return {};
  try {
    io::ChatTemplate::parse(source);
    return {};
  } catch (const Error& error) {
    return error.what();
  }
}

}  // namespace

ModelSummary summarize(const engine::EngineOptions& options, const engine::ModelBundle& model) {
  engine::validate_options(options);
  ModelSummary summary;
  summary.path = model.file->path();
  if (const auto* gguf = dynamic_cast<const io::GgufFile*>(model.file.get())) {
    summary.gguf = true;
    summary.tokenizer = gguf_tokenizer(*gguf);
  } else {
    summary.tokenizer = hf_tokenizer(summary.path);
  }
  summary.template_error = template_problem(model.chat_template);
  summary.groups = group_tensors(model);
  for (const TensorGroup& group : summary.groups) {
    summary.tensors += group.count;
    summary.parameters += group.elements;
    summary.tensor_bytes += group.bytes;
  }
  summary.context = engine::context_of(options, model.config);
  summary.memory = memory_needs(options, model);
  return summary;
}

}  // namespace longspur::app::cli
