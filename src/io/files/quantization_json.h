// `quantization_config` of a folder that is written.
#pragma once

#include <nlohmann/json_fwd.hpp>

#include "io/files/model_files.h"

namespace longspur::io {

inline constexpr uint32_t kGgufNvfp4FileType = 39;  // LLAMA_FTYPE_MOSTLY_NVFP4

// Writes config.json with what it says about the quantisation replaced, and what the dialect wants
// beside it.
void write_config(nlohmann::json config, const QuantizedModules& modules, const WriteFile& write);

}  // namespace longspur::io
