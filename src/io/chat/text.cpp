// Runs of origin, UTF-8 by hand, and searches without a quadratic case.
#include "io/chat/text.h"

#include <algorithm>
#include <cstring>

namespace longspur::io::chat {
namespace {

constexpr char32_t kEscapedByte = 0xDC00;  // as Python's surrogateescape

bool is_continuation(char c) { return (static_cast<unsigned char>(c) & 0xC0) == 0x80; }

// Bytes of a well-formed sequence at offset, 0 when it is not one.
size_t sequence_length(std::string_view bytes, size_t offset) {
  const auto lead = static_cast<unsigned char>(bytes[offset]);
  const size_t length = lead < 0x80   ? 1
                        : lead < 0xC2 ? 0
                        : lead < 0xE0 ? 2
                        : lead < 0xF0 ? 3
                        : lead < 0xF5 ? 4
                                      : 0;
  if (length == 0 || offset + length > bytes.size()) return 0;
  for (size_t i = 1; i < length; ++i) {
    if (!is_continuation(bytes[offset + i])) return 0;
  }
  return length;
}

}  // namespace

bool Text::special_at(size_t offset) const {
  const auto passed = std::upper_bound(flips_.begin(), flips_.end(), offset) - flips_.begin();
  return first_ != (passed % 2 == 1);
}

void Text::append(std::string_view bytes, bool special) {
  if (bytes.empty()) return;
  if (bytes_.empty()) {
    first_ = special;
  } else if (last() != special) {
    flips_.push_back(bytes_.size());
  }
  bytes_.append(bytes);
}

void Text::append(const Text& other) {
  other.for_each_run([this](std::string_view bytes, bool special) { append(bytes, special); });
}

void Text::append_times(const Text& other, size_t count) {
  reserve(size() + other.size() * count);
  if (!other.flips_.empty()) {
    for (size_t i = 0; i < count; ++i) append(other);
    return;
  }
  if (count == 0) return;
  append(other);
  // One origin: the bytes alone are doubled, so that many short copies cost what one long one does.
  for (size_t done = 1; done < count;) {
    const size_t more = std::min(done, count - done);
    bytes_.append(bytes_, bytes_.size() - done * other.size(), more * other.size());
    done += more;
  }
}

Text Text::substr(size_t begin, size_t end) const {
  Text out(bytes_.substr(begin, end - begin), special_at(begin));
  const auto first = std::upper_bound(flips_.begin(), flips_.end(), begin);
  for (auto flip = first; flip != flips_.end() && *flip < end; ++flip) {
    out.flips_.push_back(*flip - begin);
  }
  return out;
}

char32_t decode_at(std::string_view bytes, size_t offset, size_t* length) {
  const auto at = [&](size_t i) -> char32_t {
    return static_cast<unsigned char>(bytes[offset + i]);
  };
  *length = sequence_length(bytes, offset);
  switch (*length) {
    case 1:
      return at(0);
    case 2:
      return ((at(0) & 0x1F) << 6) | (at(1) & 0x3F);
    case 3:
      return ((at(0) & 0x0F) << 12) | ((at(1) & 0x3F) << 6) | (at(2) & 0x3F);
    case 4:
      return ((at(0) & 0x07) << 18) | ((at(1) & 0x3F) << 12) | ((at(2) & 0x3F) << 6) |
             (at(3) & 0x3F);
    default:
      *length = 1;
      return kEscapedByte + at(0);
  }
}

void append_utf8(std::string& out, char32_t code) {
  const auto put = [&out](char32_t byte) { out += static_cast<char>(byte); };
  if (code < 0x80) {
    put(code);
  } else if (code < 0x800) {
    put(0xC0 | (code >> 6));
    put(0x80 | (code & 0x3F));
  } else if (code >= kEscapedByte + 0x80 && code <= kEscapedByte + 0xFF) {
    put(code - kEscapedByte);
  } else if (code < 0x10000) {
    put(0xE0 | (code >> 12));
    put(0x80 | ((code >> 6) & 0x3F));
    put(0x80 | (code & 0x3F));
  } else {
    put(0xF0 | (code >> 18));
    put(0x80 | ((code >> 12) & 0x3F));
    put(0x80 | ((code >> 6) & 0x3F));
    put(0x80 | (code & 0x3F));
  }
}

bool is_ascii(std::string_view bytes) {
  unsigned char all = 0;
  for (const char c : bytes) all = static_cast<unsigned char>(all | static_cast<unsigned char>(c));
  return all < 0x80;
}

size_t count_code_points(std::string_view bytes) {
  if (is_ascii(bytes)) return bytes.size();
  size_t count = 0;
  for (size_t offset = 0, length = 0; offset < bytes.size(); offset += length, ++count) {
    length = std::max<size_t>(1, sequence_length(bytes, offset));
  }
  return count;
}

size_t offset_of(std::string_view bytes, size_t index) {
  if (is_ascii(bytes)) return std::min(index, bytes.size());
  size_t offset = 0;
  while (index > 0 && offset < bytes.size()) {
    offset += std::max<size_t>(1, sequence_length(bytes, offset));
    --index;
  }
  return offset;
}

size_t previous_code_point(std::string_view bytes, size_t end) {
  for (size_t length = 2; length <= std::min<size_t>(4, end); ++length) {
    if (sequence_length(bytes, end - length) == length) return end - length;
    if (!is_continuation(bytes[end - length + 1])) break;
  }
  return end - 1;
}

size_t find_bytes(std::string_view haystack, std::string_view needle, size_t from) {
  if (from > haystack.size()) return std::string_view::npos;
  if (needle.empty()) return from;
  const void* found =
      memmem(haystack.data() + from, haystack.size() - from, needle.data(), needle.size());
  if (found == nullptr) return std::string_view::npos;
  return static_cast<size_t>(static_cast<const char*>(found) - haystack.data());
}

size_t find_last_bytes(std::string_view haystack, std::string_view needle) {
  const std::string reversed(haystack.rbegin(), haystack.rend());
  const std::string wanted(needle.rbegin(), needle.rend());
  const size_t found = find_bytes(reversed, wanted);
  if (found == std::string_view::npos) return found;
  return haystack.size() - found - needle.size();
}

}  // namespace longspur::io::chat
