// Text from files in error messages: one line, no terminal control, bounded length.
#pragma once

#include <iosfwd>
#include <string_view>

namespace longspur::io {

// Prints as 'text' in quotes. Control characters and bytes that are not UTF-8 become \xNN; of a
// long text only the beginning is shown. Costs nothing until it is printed, as checks that hold
// never do.
struct Shown {
  std::string_view text;  // borrowed
};
inline Shown shown(std::string_view text) { return {text}; }
std::ostream& operator<<(std::ostream& out, Shown shown);

// Whether all of the text is UTF-8 (no surrogates, no overlong forms, at most U+10FFFF).
bool is_utf8(std::string_view text);

}  // namespace longspur::io
