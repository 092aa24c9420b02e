// Formatting mini-languages of Python's str: the % operator, str.format, and escaping for HTML.
#pragma once

#include "io/chat/budget.h"
#include "io/chat/value.h"

namespace longspur::io::chat {

Value percent_format(Budget& budget, const Value& format, const Value& arguments);

// markupsafe.escape, and + with a string that went through it.
Text escape_html(const Text& text);
Value add_markup(const Value& left, const Value& right);

}  // namespace longspur::io::chat
