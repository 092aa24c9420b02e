// Values as text, exactly as Python writes them: str, repr and json.dumps.
#pragma once

#include <optional>
#include <string>

#include "io/chat/budget.h"
#include "io/chat/value.h"

namespace longspur::io::chat {

std::string real_text(double value);  // repr of a float

Text to_text(Budget& budget, const Value& value);  // str(value)
Text repr(Budget& budget, const Value& value);

struct JsonStyle {
  bool ensure_ascii = false;
  std::optional<std::string> indent;  // of one level; none: everything on one line
  std::optional<std::string> item_separator, key_separator;
  bool sort_keys = false;
};
Text to_json(Budget& budget, const Value& value, const JsonStyle& style);

}  // namespace longspur::io::chat
