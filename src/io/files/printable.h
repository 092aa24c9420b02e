// Text from files in error messages: one line, no terminal control, bounded length.
#pragma once

#include <string>
#include <string_view>

namespace longspur::io {

// 'text' in quotes. Control characters and bytes that are not UTF-8 become \xNN; from a long text
// only the beginning is shown.
std::string shown(std::string_view text);

// Whether all of the text is UTF-8 (no surrogates, no overlong forms, at most U+10FFFF).
bool is_utf8(std::string_view text);

}  // namespace longspur::io
