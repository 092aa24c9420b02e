// StreamDecoder of tokenizer.h: the first token that adds something loses what decode() strips from
// the start of a text; every later one adds its bytes.
#include "io/tokenizer/tokenizer.h"
#include "io/tokenizer/unicode.h"

namespace longspur::io {

StreamDecoder::StreamDecoder(const Tokenizer& tokenizer, DecodeOptions options)
    : tokenizer_(tokenizer), options_(options) {}

std::string StreamDecoder::push(int32_t id) {
  const std::string bytes = tokenizer_.token_bytes(id);
  if (bytes.empty() || (options_.skip_special && tokenizer_.is_control(id))) return {};
  pending_ += at_start_ ? tokenizer_.decode({&id, 1}, options_) : bytes;
  at_start_ = false;
  const size_t held = incomplete_utf8_suffix(pending_);
  const size_t whole = pending_.size() - held;
  std::string out = to_valid_utf8(std::string_view(pending_).substr(0, whole));
  pending_.erase(0, whole);
  return out;
}

std::string StreamDecoder::flush() {
  std::string out = to_valid_utf8(pending_);
  pending_.clear();
  return out;
}

}  // namespace longspur::io
