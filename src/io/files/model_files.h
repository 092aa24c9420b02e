// What stands beside the tensors in a quantised model: configuration and tokenizer.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "io/files/gguf.h"
#include "io/files/gguf_header.h"
#include "io/files/model_config.h"
#include "io/files/model_writer.h"

namespace longspur::io {

// Which modules of the model are quantised and how, for the configuration.
struct QuantizedModules {
  ModelDialect dialect = ModelDialect::kModelOpt;
  bool any = false;                  // whether any matrix is NVFP4 at all
  bool with_input = false;           // activations too
  float scale_top = 1536.0f;         // fouroversix
  std::vector<std::string> ignored;  // linear modules that are not: "lm_head", ...
};

// Writes a file of the new model's folder.
using WriteFile = std::function<void(const std::string& name, std::string_view text)>;

// config.json and the rest of a folder, from a folder: tokenizer, templates and licences as they
// are; what described the source's quantisation is replaced.
void write_folder_files(const std::string& source,
                        const QuantizedModules& modules,
                        const WriteFile& write);

// The same from a GGUF file: everything is made from its keys.
void write_folder_files(const GgufFile& source,
                        const ModelConfig& config,
                        const QuantizedModules& modules,
                        const WriteFile& write);

// Keys of a GGUF file from those of another, or from a folder.
void add_keys(const GgufFile& source, const QuantizedModules& modules, GgufHeader& header);
void add_keys(const std::string& source,
              const ModelConfig& config,
              const QuantizedModules& modules,
              GgufHeader& header);

// Divisors of the rotary frequencies that a GGUF file keeps in rope_freqs.weight: those that the
// source has, or what llama3's scaling comes to; empty: none.
std::vector<float> rope_freq_factors(const ModelConfig& config);

}  // namespace longspur::io
