// What a model's files hold and what a run of it will take, from their headers alone.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "base/dtype.h"
#include "engine/engine.h"
#include "engine/model_bundle.h"

namespace longspur::app::cli {

// The tokenizer as its files name it, without building it.
struct TokenizerSummary {
  std::string model;  // "gpt2" or "llama" (GGUF), "BPE" (tokenizer.json); empty: there is none
  std::string pre;    // pre-tokeniser (GGUF); may be empty
  std::string kind;   // for people: "byte-level BPE"; empty when the name says nothing to us
};

struct TensorGroup {
  DType dtype;
  int64_t count = 0, elements = 0, bytes = 0;
};

struct MemoryNeeds {
  engine::MemoryPlan plan;
  int64_t total_bytes = 0;
  std::string refusal;  // why it does not fit this machine; empty: it does
};

struct ModelSummary {
  std::string path;
  bool gguf = false;
  TokenizerSummary tokenizer;
  std::string template_error;       // of a chat template that cannot be used; empty: fine, or none
  std::vector<TensorGroup> groups;  // by falling bytes
  int64_t tensors = 0, parameters = 0, tensor_bytes = 0;
  int64_t context = 0;  // tokens a sequence may have in the planned run
  MemoryNeeds memory;

  double bits_per_weight() const {
    return parameters > 0 ? 8.0 * double(tensor_bytes) / double(parameters) : 0;
  }
};

// Throws Error on files that cannot be used, UnsupportedError when the device is not there. What
// does not fit in memory is a fact of the summary, not an error.
ModelSummary summarize(const engine::EngineOptions& options, const engine::ModelBundle& model);

nlohmann::ordered_json summary_json(const engine::ModelBundle& model,
                                    const ModelSummary& summary,
                                    int64_t sequences);
nlohmann::ordered_json tensors_json(const engine::ModelBundle& model);

// Lines for a person; `run` says what the memory is for: "1 sequence on cpu".
std::string summary_text(const engine::ModelBundle& model,
                         const ModelSummary& summary,
                         const std::string& run);
std::string tensors_text(const engine::ModelBundle& model);

}  // namespace longspur::app::cli
