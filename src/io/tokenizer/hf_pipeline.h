// The parts of a tokenizer.json around its model. Each reader refuses, with UnsupportedError, what
// it cannot do exactly.
#pragma once

#include "io/tokenizer/json_node.h"
#include "io/tokenizer/tokenizer_spec.h"

namespace longspur::io {

Normalizer read_normalizer(const JsonNode& node);

struct HfPreTokenizer {
  PreTokenizer steps;
  bool byte_level = false;  // ends with ByteLevel
};
HfPreTokenizer read_pre_tokenizer(const JsonNode& node);

DecoderSpec read_decoder(const JsonNode& node);

// The token that the post-processor puts in front of a text, by piece; empty: none.
std::string read_leading_token(const JsonNode& node);

}  // namespace longspur::io
