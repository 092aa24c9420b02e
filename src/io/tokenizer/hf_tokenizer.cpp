// Tokenizer::from_hf.
#include "base/error.h"
#include "io/tokenizer/tokenizer_spec.h"

namespace longspur::io {

std::unique_ptr<Tokenizer> Tokenizer::from_hf(const std::string& folder) {
  throw UnsupportedError(concat(folder, ": found tokenizer.json, expected a GGUF file"));
}

}  // namespace longspur::io
