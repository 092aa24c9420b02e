// One field of Python's format mini-language, as str.format and the % operator fill it.
#pragma once

#include <string>

#include "io/chat/budget.h"
#include "io/chat/value.h"

namespace longspur::io::chat {

struct FormatSpec {
  Text fill = Text(" ", true);
  char align = '\0';  // < > ^ =, nul: by type
  char sign = '-';    // - + or blank
  bool alternate = false;
  char grouping = '\0';  // , or _
  int width = 0;
  int precision = -1;
  char type = '\0';
};

inline constexpr int kMaxFieldSize = 100'000;  // width and precision

FormatSpec parse_format_spec(const Text& spec);
Text format_value(Budget& budget, const Value& value, const FormatSpec& spec);
Text format_text(Budget& budget, const Text& text, const FormatSpec& spec);

}  // namespace longspur::io::chat
