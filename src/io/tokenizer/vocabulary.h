// The pieces of a vocabulary by id, and ids by piece. Pieces lie one after another in one buffer.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace longspur::io {

// A list of strings in one buffer.
class StringList {
 public:
  void reserve(size_t count, size_t bytes);
  void add(std::string_view text);
  std::string_view operator[](size_t i) const {
    return std::string_view(buffer_).substr(offsets_[i], offsets_[i + 1] - offsets_[i]);
  }
  size_t size() const { return offsets_.size() - 1; }

 private:
  std::string buffer_;
  std::vector<size_t> offsets_ = {0};
};

// string -> index in a StringList that outlives it; open addressing.
class StringIndex {
 public:
  StringIndex() = default;
  // Room for this many strings.
  explicit StringIndex(size_t count);
  // False, and nothing changes, when an equal string is there already.
  bool insert(const StringList& list, int32_t i);
  std::optional<int32_t> find(const StringList& list, std::string_view text) const;

 private:
  size_t slot(const StringList& list, std::string_view text, uint32_t hash) const;

  struct Entry {
    uint32_t hash = 0;
    int32_t index = -1;
  };
  std::vector<Entry> entries_;
};

// Ids without a piece (gaps) hold an empty piece and are not found.
class Vocabulary {
 public:
  Vocabulary() = default;
  // Throws Error, beginning with `name`, when a piece stands there twice.
  Vocabulary(const std::vector<std::string_view>& pieces, const std::string& name);

  int32_t size() const { return int32_t(pieces_.size()); }
  std::string_view piece(int32_t id) const { return pieces_[size_t(id)]; }
  std::optional<int32_t> find(std::string_view piece) const { return index_.find(pieces_, piece); }

 private:
  StringList pieces_;
  StringIndex index_;
};

uint64_t mix_hash(uint64_t x);

}  // namespace longspur::io
