// What a run will take, decided before anything is loaded.
#pragma once

#include "engine/engine.h"
#include "models/decoder_tensors.h"

namespace longspur::engine {

struct EnginePlan {
  MemoryPlan bytes;
  int64_t max_context = 0;
  int64_t pages = 0;
  int64_t side_blocks = 0;  // of each sequence, beside those of its tokens
  runtime::AttentionPlan attention;
};

// Throws UsageError on impossible values and UnsupportedError on what is not built.
void validate_options(const EngineOptions& options);

// Tokens a sequence may have: what the options ask for, else the model's own.
int64_t context_of(const EngineOptions& options, const io::ModelConfig& config);

EnginePlan plan_memory(const EngineOptions& options,
                       const io::ModelConfig& config,
                       const models::DecoderTensors& tensors);

}  // namespace longspur::engine
