// What Python's str knows about characters.
#pragma once

#include <string>
#include <string_view>

#include "io/chat/text.h"

namespace longspur::io::chat {

bool is_space(char32_t code);       // str.isspace, and what str.strip and str.split take away
bool is_line_break(char32_t code);  // where str.splitlines cuts
bool is_alpha(char32_t code);
bool is_decimal(char32_t code);
bool is_digit(char32_t code);
bool is_numeric(char32_t code);
bool is_printable(char32_t code);  // what repr does not escape
bool is_cased(char32_t code);
bool is_upper(char32_t code);
bool is_lower(char32_t code);
bool is_title(char32_t code);

enum class Case { upper, lower, title, capitalize, swap, fold };
// str.upper and so on, with the mappings that make one character several.
Text change_case(const Text& text, Case to);

// Byte offsets of what remains after stripping blanks.
size_t skip_spaces(std::string_view bytes, size_t begin);
size_t trim_end(std::string_view bytes, size_t begin, size_t end);

}  // namespace longspur::io::chat
