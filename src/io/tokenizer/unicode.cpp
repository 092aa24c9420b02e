#include "io/tokenizer/unicode.h"

#include <cstring>
#include <memory>

namespace longspur::io {

namespace {

constexpr std::string_view kReplacement = "\xef\xbf\xbd";  // U+FFFD

// What a lead byte promises: length of the sequence and the range of its second byte, which is what
// excludes overlong forms, surrogates and code points above U+10FFFF. Length 0: never a lead byte.
struct Lead {
  uint32_t length;
  uint8_t low;
  uint8_t high;
};

Lead lead_of(uint8_t byte) {
  if (byte < 0x80) return {1, 0, 0};
  if (byte < 0xc2) return {0, 0, 0};
  if (byte < 0xe0) return {2, 0x80, 0xbf};
  if (byte < 0xf0)
    return {3, uint8_t(byte == 0xe0 ? 0xa0 : 0x80), uint8_t(byte == 0xed ? 0x9f : 0xbf)};
  if (byte < 0xf5)
    return {4, uint8_t(byte == 0xf0 ? 0x90 : 0x80), uint8_t(byte == 0xf4 ? 0x8f : 0xbf)};
  return {0, 0, 0};
}

// How many bytes from the start of the text are a prefix of the sequence that its lead byte starts.
uint32_t valid_prefix(std::string_view text, const Lead& lead) {
  uint32_t n = 1;
  for (; n < lead.length && n < text.size(); ++n) {
    const auto byte = uint8_t(text[n]);
    const uint8_t low = n == 1 ? lead.low : uint8_t(0x80);
    const uint8_t high = n == 1 ? lead.high : uint8_t(0xbf);
    if (byte < low || byte > high) break;
  }
  return n;
}

std::unique_ptr<uint8_t[]> expand_ranges() {
  auto classes = std::make_unique<uint8_t[]>(kCodePoints);
  for (int i = 0; i < kClassRangeCount; ++i) {
    const ClassRange& range = kClassRanges[i];
    std::memset(classes.get() + range.first, range.classes, range.count);
  }
  for (int i = 0; i < kNormalizingRangeCount; ++i) {
    const ClassRange& range = kNormalizingRanges[i];
    for (uint32_t c = range.first; c < range.first + range.count; ++c)
      classes[c] = uint8_t(classes[c] | range.classes);
  }
  return classes;
}

}  // namespace

Utf8Char next_char(std::string_view text) {
  const auto byte = uint8_t(text[0]);
  if (byte < 0x80) return {byte, 1};
  const Lead lead = lead_of(byte);
  if (lead.length == 0 || valid_prefix(text, lead) != lead.length) return {kInvalid, 1};
  uint32_t code_point = byte & (0x7fu >> lead.length);
  for (uint32_t i = 1; i < lead.length; ++i)
    code_point = code_point << 6 | (uint8_t(text[i]) & 0x3fu);
  return {code_point, lead.length};
}

void append_utf8(std::string& out, uint32_t code_point) {
  const auto tail = [&](int shift) { out += char(0x80 | (code_point >> shift & 0x3f)); };
  if (code_point < 0x80) {
    out += char(code_point);
  } else if (code_point < 0x800) {
    out += char(0xc0 | code_point >> 6);
    tail(0);
  } else if (code_point < 0x10000) {
    out += char(0xe0 | code_point >> 12);
    tail(6);
    tail(0);
  } else {
    out += char(0xf0 | code_point >> 18);
    tail(12);
    tail(6);
    tail(0);
  }
}

size_t find_invalid_utf8(std::string_view text) {
  size_t at = 0;
  while (at < text.size()) {
    uint64_t word = 0;
    if (at + 8 <= text.size()) {
      std::memcpy(&word, text.data() + at, 8);
      if ((word & 0x8080808080808080u) == 0) {
        at += 8;
        continue;
      }
    }
    const Utf8Char c = next_char(text.substr(at));
    if (c.code_point == kInvalid) return at;
    at += c.bytes;
  }
  return at;
}

std::string to_valid_utf8(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  while (!text.empty()) {
    const size_t valid = find_invalid_utf8(text);
    out += text.substr(0, valid);
    text.remove_prefix(valid);
    if (text.empty()) break;
    const Lead lead = lead_of(uint8_t(text[0]));
    out += kReplacement;
    text.remove_prefix(lead.length == 0 ? 1 : valid_prefix(text, lead));
  }
  return out;
}

size_t incomplete_utf8_suffix(std::string_view text) {
  for (size_t n = 1; n <= 3 && n <= text.size(); ++n) {
    const std::string_view suffix = text.substr(text.size() - n);
    const auto byte = uint8_t(suffix[0]);
    if ((byte & 0xc0) == 0x80) continue;
    const Lead lead = lead_of(byte);
    return lead.length > n && valid_prefix(suffix, lead) == n ? n : 0;
  }
  return 0;
}

const uint8_t* char_classes() {
  static const std::unique_ptr<uint8_t[]> classes = expand_ranges();
  return classes.get();
}

}  // namespace longspur::io
