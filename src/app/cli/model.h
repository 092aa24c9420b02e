// From settings to a loaded engine, or to its tokenizer alone.
#pragma once

#include <memory>
#include <string>

#include "app/cli/settings.h"
#include "engine/engine.h"
#include "io/tokenizer/tokenizer.h"

namespace longspur::app::cli {

// Options of the groups kModel and kEngine. `sequences` is what --max-sequences 0 stands for.
// Throws UsageError on a device that cannot exist.
engine::EngineOptions engine_options(const Settings& settings, int64_t sequences = 1);

// Loads with progress on stderr; throws Interrupted when asked to stop meanwhile.
std::unique_ptr<engine::Engine> load_engine(const engine::EngineOptions& options);

// What the model's files say, without its weights.
struct ModelLimits {
  int64_t vocab = 0;
  int64_t context = 0;  // tokens; --max-context when given
};
ModelLimits model_limits(const engine::EngineOptions& options);

// The tokenizer without the weights: of a .gguf file, an HF folder, a tokenizer.json or a known
// name.
std::unique_ptr<io::Tokenizer> open_tokenizer(const std::string& model);

}  // namespace longspur::app::cli
