#include "io/tokenizer/vocabulary.h"

#include <bit>
#include <cstring>

#include "base/error.h"
#include "io/files/printable.h"

namespace longspur::io {

namespace {

uint32_t hash_bytes(std::string_view text) {
  uint64_t hash = text.size();
  while (text.size() >= 8) {
    uint64_t word = 0;
    std::memcpy(&word, text.data(), 8);
    hash = mix_hash(hash ^ word);
    text.remove_prefix(8);
  }
  uint64_t word = 0;
  std::memcpy(&word, text.data(), text.size());
  return uint32_t(mix_hash(hash ^ word) >> 32);
}

}  // namespace

uint64_t mix_hash(uint64_t x) {
  x = (x ^ (x >> 32)) * 0xd6e8feb86659fd93u;
  x = (x ^ (x >> 32)) * 0xd6e8feb86659fd93u;
  return x ^ (x >> 32);
}

void StringList::reserve(size_t count, size_t bytes) {
  offsets_.reserve(count + 1);
  buffer_.reserve(bytes);
}

void StringList::add(std::string_view text) {
  buffer_ += text;
  offsets_.push_back(buffer_.size());
}

StringIndex::StringIndex(size_t count) : entries_(std::bit_ceil(2 * count + 1)) {}

// The slot that holds the text, or the free one where it would go. At least half are free.
size_t StringIndex::slot(const StringList& list, std::string_view text, uint32_t hash) const {
  const size_t mask = entries_.size() - 1;
  size_t at = hash & mask;
  while (entries_[at].index >= 0 &&
         (entries_[at].hash != hash || list[size_t(entries_[at].index)] != text)) {
    at = (at + 1) & mask;
  }
  return at;
}

bool StringIndex::insert(const StringList& list, int32_t i) {
  const std::string_view text = list[size_t(i)];
  const uint32_t hash = hash_bytes(text);
  Entry& entry = entries_[slot(list, text, hash)];
  if (entry.index >= 0) return false;
  entry = {hash, i};
  return true;
}

std::optional<int32_t> StringIndex::find(const StringList& list, std::string_view text) const {
  if (entries_.empty()) return std::nullopt;
  const int32_t index = entries_[slot(list, text, hash_bytes(text))].index;
  return index >= 0 ? std::optional(index) : std::nullopt;
}

Vocabulary::Vocabulary(const std::vector<std::string_view>& pieces, const std::string& name)
    : index_(pieces.size()) {
  size_t bytes = 0;
  for (const auto piece : pieces) bytes += piece.size();
  pieces_.reserve(pieces.size(), bytes);
  for (size_t i = 0; i < pieces.size(); ++i) {
    pieces_.add(pieces[i]);
    if (pieces[i].empty()) continue;
    if (!index_.insert(pieces_, int32_t(i)))
      throw Error(concat(name, ": found the piece ", shown(pieces[i]), " at the ids ",
                         *find(pieces[i]), " and ", i, ", expected each piece once"));
  }
}

}  // namespace longspur::io
