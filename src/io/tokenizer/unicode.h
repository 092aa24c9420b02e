// UTF-8, one character at a time, and the character classes that pre-tokenizers ask for. The
// classes are those of the `tokenizers` package (tools/make_unicode_classes.py). An invalid byte is
// a character of its own, kInvalid, of no class.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace longspur::io {

enum CharClass : uint8_t {
  kLetter = 1,      // \p{L}
  kNumber = 2,      // \p{N}, as regular expressions see it
  kSpace = 4,       // \s
  kNumeric = 8,     // \p{N}, as the Digits pre-tokenizer sees it (a newer Unicode)
  kWordChar = 16,   // what an added token that is a single word may not touch
  kNormalizes = 32  // takes part in normalization (an older Unicode: later characters stay)
};

struct ClassRange {
  uint32_t first;
  uint32_t count;
  uint8_t classes;
};
extern const ClassRange kClassRanges[];
extern const int kClassRangeCount;
extern const ClassRange kNormalizingRanges[];
extern const int kNormalizingRangeCount;

inline constexpr uint32_t kInvalid = 0xffffffff;
inline constexpr uint32_t kCodePoints = 0x110000;

struct Utf8Char {
  uint32_t code_point;  // kInvalid for a byte that starts no valid sequence
  uint32_t bytes;       // 1 for an invalid byte
};

// The character at the start of a text that is not empty.
Utf8Char next_char(std::string_view text);
// Appends a code point below kCodePoints.
void append_utf8(std::string& out, uint32_t code_point);
// Where the first invalid byte is; text.size() when there is none.
size_t find_invalid_utf8(std::string_view text);
// Each invalid byte as U+FFFD; a sequence that is cut off, at the end or not, becomes one U+FFFD.
std::string to_valid_utf8(std::string_view text);
// How many bytes at the end of the text are a valid beginning of a character that is not complete.
size_t incomplete_utf8_suffix(std::string_view text);

// Classes of every code point, indexed by code point; built at the first call.
const uint8_t* char_classes();

// Class bits of the next character; moves `at` past it. `at` is inside the text.
inline uint8_t next_class(std::string_view text, size_t& at, const uint8_t* classes) {
  const auto byte = uint8_t(text[at]);
  if (byte < 0x80) {
    ++at;
    return classes[byte];
  }
  const Utf8Char c = next_char(text.substr(at));
  at += c.bytes;
  return c.code_point == kInvalid ? uint8_t(0) : classes[c.code_point];
}

}  // namespace longspur::io
