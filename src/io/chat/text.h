// Strings that know where each byte comes from. Everything that templates do with strings (cutting,
// joining, replacing, changing case) keeps the origin of the bytes, so that a control token can
// never be assembled from text that a user wrote.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace longspur::io::chat {

// Bytes (UTF-8 by convention) with runs of alternating origin. special: from the template.
class Text {
 public:
  Text() = default;
  Text(std::string bytes, bool special) : bytes_(std::move(bytes)), first_(special) {}

  const std::string& bytes() const { return bytes_; }
  size_t size() const { return bytes_.size(); }
  bool empty() const { return bytes_.empty(); }
  // Origin of the byte at an offset; of the first byte for an empty text.
  bool special_at(size_t offset) const;
  // False as soon as one byte is not the template's.
  bool all_special() const { return flips_.empty() && (first_ || bytes_.empty()); }

  void append(std::string_view bytes, bool special);
  void append(const Text& other);
  void reserve(size_t bytes) { bytes_.reserve(bytes); }
  void append_times(const Text& other, size_t count);
  Text substr(size_t begin, size_t end) const;  // byte offsets, begin <= end <= size()

  // Calls visit(std::string_view, bool special) for every run, in order.
  template <class Visit>
  void for_each_run(Visit&& visit) const {
    size_t begin = 0;
    bool special = first_;
    for (const size_t flip : flips_) {
      visit(std::string_view(bytes_).substr(begin, flip - begin), special);
      begin = flip;
      special = !special;
    }
    if (begin < bytes_.size()) visit(std::string_view(bytes_).substr(begin), special);
  }

 private:
  bool last() const { return first_ != (flips_.size() % 2 == 1); }

  std::string bytes_;
  bool first_ = true;
  std::vector<size_t> flips_;  // offsets in (0, size()) where the origin changes, ascending
};

// Code points. Invalid UTF-8 is read byte by byte, as U+DC80..U+DCFF, and written back as that
// byte.
char32_t decode_at(std::string_view bytes, size_t offset, size_t* length);
void append_utf8(std::string& out, char32_t code);
bool is_ascii(std::string_view bytes);
size_t count_code_points(std::string_view bytes);
// Byte offset of a code point; bytes.size() when index is at or past the end.
size_t offset_of(std::string_view bytes, size_t index);
// Offset of the code point that ends at `end` (> 0).
size_t previous_code_point(std::string_view bytes, size_t end);

// First or last place of a needle, npos when absent; linear in the haystack whatever the needle.
size_t find_bytes(std::string_view haystack, std::string_view needle, size_t from = 0);
size_t find_last_bytes(std::string_view haystack, std::string_view needle);

}  // namespace longspur::io::chat
