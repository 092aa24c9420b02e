#include "io/files/printable.h"

#include <algorithm>
#include <cstdint>
#include <ostream>

namespace longspur::io {

namespace {

constexpr size_t kShown = 120;  // bytes of a quoted text

// Bytes of the UTF-8 sequence at the start of `text`, which is not empty; 0 when there is none.
size_t sequence_length(std::string_view text) {
  const auto byte = [&](size_t i) { return uint8_t(text[i]); };
  const uint8_t lead = byte(0);
  if (lead < 0x80) return 1;
  const size_t length = lead >= 0xf0 ? 4 : lead >= 0xe0 ? 3 : 2;
  if (lead < 0xc2 || lead > 0xf4 || text.size() < length) return 0;
  for (size_t i = 1; i < length; ++i)
    if ((byte(i) & 0xc0) != 0x80) return 0;
  const bool bad = (lead == 0xe0 && byte(1) < 0xa0) || (lead == 0xed && byte(1) > 0x9f) ||
                   (lead == 0xf0 && byte(1) < 0x90) || (lead == 0xf4 && byte(1) > 0x8f);
  return bad ? 0 : length;
}

// C0, DEL and C1: what a terminal would act upon.
bool is_control(std::string_view sequence) {
  const auto lead = uint8_t(sequence[0]);
  return lead < 0x20 || lead == 0x7f || (lead == 0xc2 && uint8_t(sequence[1]) < 0xa0);
}

void print_escaped(std::ostream& out, std::string_view bytes) {
  static constexpr std::string_view kHex = "0123456789abcdef";
  for (const char c : bytes) out << "\\x" << kHex[uint8_t(c) >> 4] << kHex[uint8_t(c) & 15];
}

}  // namespace

std::ostream& operator<<(std::ostream& out, Shown shown) {
  const std::string_view text = shown.text;
  size_t at = 0;
  out << '\'';
  while (at < text.size() && at < kShown) {
    const size_t length = sequence_length(text.substr(at));
    const std::string_view piece = text.substr(at, std::max<size_t>(length, 1));
    if (length == 0 || is_control(piece))
      print_escaped(out, piece);
    else
      out << piece;
    at += piece.size();
  }
  return out << (at < text.size() ? "...'" : "'");
}

bool is_utf8(std::string_view text) {
  while (!text.empty()) {
    const size_t length = sequence_length(text);
    if (length == 0) return false;
    text.remove_prefix(length);
  }
  return true;
}

}  // namespace longspur::io
