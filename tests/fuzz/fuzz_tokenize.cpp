// Encode and decode on tokenizers of several kinds: the first byte picks one, the rest is text, cut
// into segments at each 0x1e, every other one with control tokens.
#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <vector>

#include "fuzz/memory_file.h"
#include "fuzz/read_tensors.h"
#include "io/tokenizer/tokenizer.h"
#include "io/tokenizer/unicode.h"

namespace {

using namespace longspur;

std::vector<std::unique_ptr<io::Tokenizer>> load_all() {
  std::vector<std::unique_ptr<io::Tokenizer>> all;
  const std::filesystem::path folder = LONGSPUR_TOKENIZERS;
  for (const char* name : {"gpt2", "smollm", "llama3", "qwen2", "llama2", "mistral", "regex"})
    all.push_back(io::Tokenizer::from_hf((folder / name).string()));
  return all;
}

std::vector<io::TextSegment> segments_of(std::string_view text) {
  std::vector<io::TextSegment> segments;
  while (true) {
    const size_t end = std::min(text.find('\x1e'), text.size());
    segments.push_back({std::string(text.substr(0, end)), segments.size() % 2 == 0});
    if (end == text.size()) return segments;
    text.remove_prefix(end + 1);
  }
}

std::string streamed(const io::Tokenizer& tokenizer, const std::vector<int32_t>& ids) {
  io::StreamDecoder stream(tokenizer);
  std::string text;
  for (const int32_t id : ids) {
    const std::string part = stream.push(id);
    fuzz::promise(io::find_invalid_utf8(part) == part.size());
    text += part;
  }
  return text + stream.flush();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const auto tokenizers = load_all();
  if (size == 0) return 0;
  const io::Tokenizer& tokenizer = *tokenizers[data[0] % tokenizers.size()];
  const std::string_view text(reinterpret_cast<const char*>(data) + 1, size - 1);
  const std::vector<io::TextSegment> segments = segments_of(text);
  const std::vector<int32_t> ids = tokenizer.encode_segments(segments);
  std::vector<io::TextSegment> user = segments;
  for (auto& segment : user) segment.special = false;
  for (const int32_t id : tokenizer.encode_segments(user)) fuzz::promise(!tokenizer.is_control(id));
  const std::string decoded = tokenizer.decode(ids);
  fuzz::promise(streamed(tokenizer, ids) == io::to_valid_utf8(decoded));
  return 0;
}
