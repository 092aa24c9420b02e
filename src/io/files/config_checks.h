// Limits that every model configuration must respect, whatever file it came from.
#pragma once

#include <string>

#include "io/files/model_config.h"

namespace longspur::io {

inline constexpr int64_t kMaxLayers = 1024;

// Throws Error naming `where`, the field, what was found and what was expected.
void validate_config(const ModelConfig& config, const std::string& where);

// "llama" -> kLlama; UnsupportedError with the list of what is supported.
Architecture parse_architecture(const std::string& name, const std::string& where);

}  // namespace longspur::io
