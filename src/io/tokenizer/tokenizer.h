// Text to token ids and back. Byte-level BPE (GPT-2 family) and SentencePiece-style BPE with byte
// fallback (Llama-2 family), from a tokenizer.json or from GGUF metadata. Immutable after loading:
// encode and decode may be called from any thread.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "io/files/gguf.h"

namespace longspur::io {

struct EncodeOptions {
  bool special = true;  // read control tokens ("<|im_start|>") in the text; false: they stay text
  bool bos = false;     // prepend the beginning-of-sequence token (error if the model has none)
};

struct DecodeOptions {
  bool skip_special = false;  // leave control tokens out of the text
};

// A piece of a prompt and whether its control tokens may be read (template text) or must stay text
// (user text).
struct TextSegment {
  std::string text;
  bool special = false;
};

class Tokenizer {
 public:
  virtual ~Tokenizer() = default;

  // folder: holds tokenizer.json (and, if present, tokenizer_config.json); or the json's own path.
  static std::unique_ptr<Tokenizer> from_hf(const std::string& folder);
  static std::unique_ptr<Tokenizer> from_gguf(const GgufFile& file);

  // Any bytes: invalid UTF-8 is kept, byte for byte, where the model can express it, else it
  // becomes U+FFFD. Linear or n log n in the text's length.
  virtual std::vector<int32_t> encode(std::string_view text,
                                      const EncodeOptions& options = {}) const = 0;
  // One sequence from several segments, as if each were encoded with its own `special` option.
  virtual std::vector<int32_t> encode_segments(std::span<const TextSegment> segments,
                                               bool bos = false) const = 0;

  // Throws Error on an id outside [0, vocab_size()). May hold incomplete UTF-8 at the end.
  virtual std::string decode(std::span<const int32_t> ids,
                             const DecodeOptions& options = {}) const = 0;
  // The bytes this id adds in the middle of a text.
  virtual std::string token_bytes(int32_t id) const = 0;
  // The entry as it stands in the vocabulary ("Ġthe").
  virtual std::string_view piece(int32_t id) const = 0;

  virtual int32_t vocab_size() const = 0;
  virtual bool is_control(int32_t id) const = 0;  // special / control token
  virtual std::optional<int32_t> token_id(std::string_view piece) const = 0;
  virtual std::optional<int32_t> bos_id() const = 0;
  virtual std::optional<int32_t> eos_id() const = 0;
  virtual bool add_bos_by_default() const = 0;  // what the model's files ask for
};

// Turns ids that arrive one at a time into text that is always whole UTF-8 characters; what cannot
// be completed is held back until flush().
class StreamDecoder {
 public:
  explicit StreamDecoder(const Tokenizer& tokenizer, DecodeOptions options = {});
  std::string push(int32_t id);
  std::string flush();  // the held bytes, invalid ones as U+FFFD

 private:
  const Tokenizer& tokenizer_;
  DecodeOptions options_;
  std::string pending_;
  bool at_start_ = true;
};

}  // namespace longspur::io
