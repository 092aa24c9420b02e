// Byte-level BPE tokenizers that GGUF and Hugging Face folders both can name: how each is spelled
// in tokenizer.json.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

namespace longspur::io {

// The name in tokenizer.ggml.pre. Throws UnsupportedError, beginning with `where`, for a tokenizer
// that has none.
std::string ggml_pre_name(const nlohmann::json& tokenizer, const std::string& where);

// normalizer, pre_tokenizer, decoder and the flags of the model, for such a name.
nlohmann::json hf_tokenizer_steps(std::string_view pre, const std::string& where);

}  // namespace longspur::io
