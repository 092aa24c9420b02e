// Everything a model's files say, opened but not loaded: configuration, tensors by role, tokenizer,
// chat template, generation defaults.
#pragma once

#include <memory>
#include <string>

#include "engine/engine.h"
#include "models/decoder_tensors.h"

namespace longspur::engine {

struct ModelBundle {
  std::unique_ptr<io::TensorFile> file;
  io::ModelConfig config;
  io::GenerationDefaults defaults;
  models::DecoderTensors tensors;            // borrow from `file`
  std::unique_ptr<io::Tokenizer> tokenizer;  // null: the model has none
  std::string chat_template;                 // source; empty: none
};

// with_tokenizer = false skips the vocabulary (planning memory does not need it).
ModelBundle open_model(const std::string& argument, bool with_tokenizer = true);

}  // namespace longspur::engine
