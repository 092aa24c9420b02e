// The engine: a loaded model, its cache and a scheduler that keeps many sequences in flight. One
// thread drives it (step()); cancel() may be called from any thread or a signal handler's flag.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "engine/attention_options.h"
#include "io/chat/chat_template.h"
#include "io/files/model_config.h"
#include "io/tokenizer/tokenizer.h"
#include "request/request.h"

namespace longspur::engine {

enum class Compute { kDefault, kFp32 };
enum class KvStorage { kBF16, kNVFP4 };

struct EngineOptions {
  std::string model;           // HF folder, .gguf file or known name ("smollm2")
  std::string device = "cpu";  // "cpu", "cuda", "cuda:1"
  int threads = 0;             // 0: all this process may use
  Compute compute = Compute::kDefault;
  // Of products with NVFP4 matrices on the CPU: "default" (8 bits), "nvfp4" or "nvfp4:RULE", RULE
  // being static_6, static_4, four_over_six (the default), sweep or full_sweep.
  std::string activations = "default";
  KvStorage kv_type = KvStorage::kBF16;
  AttentionOptions attention;
  int64_t max_context = 0;      // 0: the model's
  int64_t max_sequences = 16;   // in flight at once
  int64_t kv_bytes = 0;         // cache budget; 0: enough for max_sequences contexts, at most a
                                // share of free memory
  int64_t prefill_chunk = 512;  // tokens a step
};

// Bytes a run will need, known from the file's headers alone.
struct MemoryPlan {
  int64_t weights_bytes = 0;
  int64_t kv_bytes_per_token = 0;
  int64_t kv_bytes = 0;  // for the options' context and sequences
  int64_t workspace_bytes = 0;
};

// Opens the model's headers and plans `options` on this machine; throws Error when it cannot fit.
MemoryPlan plan_memory(const EngineOptions& options);

using AttentionStats = runtime::AttentionStats;

struct EngineStats {
  double load_s = 0;
  int64_t prefill_tokens = 0, decode_tokens = 0;
  double prefill_s = 0, decode_s = 0;
  MemoryPlan memory;
  AttentionStats attention;
};

// Paths behind a model argument. Known names are looked up in $LONGSPUR_MODELS, the user's cache
// folder and the build's own download folder, in that order; Error lists where it looked.
struct ModelFiles {
  enum class Kind { kGguf, kHfFolder };
  Kind kind;
  std::string path;
};
ModelFiles resolve_model(const std::string& argument);

class Engine {
 public:
  using Progress = std::function<void(int64_t done_bytes, int64_t total_bytes)>;
  static std::unique_ptr<Engine> load(const EngineOptions& options, const Progress& progress = {});
  virtual ~Engine() = default;

  virtual const io::ModelConfig& config() const = 0;
  virtual const io::Tokenizer& tokenizer() const = 0;         // Error when the model has none
  virtual const io::ChatTemplate* chat_template() const = 0;  // nullptr when the model has none
  virtual const io::GenerationDefaults& defaults() const = 0;
  virtual int64_t max_context() const = 0;

  // Queues a request; throws Error when it can never run (empty prompt, longer than the context,
  // bad parameters); nothing is kept in that case. Ids must be unique among requests in flight.
  virtual void submit(Request request) = 0;
  virtual void cancel(const std::string& id) = 0;
  // One scheduler step: prefills a chunk and/or decodes one token of each running sequence.
  // Returns what happened; empty and !busy() when there is nothing to do.
  virtual std::vector<RequestUpdate> step() = 0;
  virtual bool busy() const = 0;

  // Logits of a sequence without keeping it: calls sink(first_row, rows, logits [rows, V]) in
  // order, from row `first` on (the number of tokens - 1: only the last).
  using LogitsSink = std::function<void(int64_t first, int64_t rows, const float* logits)>;
  virtual void logits(std::span<const int32_t> tokens, int64_t first, const LogitsSink& sink) = 0;

  virtual EngineStats stats() const = 0;
  virtual void reset_stats() = 0;
};

}  // namespace longspur::engine
