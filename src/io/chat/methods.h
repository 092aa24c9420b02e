// Methods by type of value.
#pragma once

#include <string_view>

#include "io/chat/objects.h"

namespace longspur::io::chat {

Method find_text_method(std::string_view name);  // nullptr when unknown

// str.format and str.format_map.
Value format_method(Interpreter& interpreter, const Value& self, Arguments& given);
Value format_map_method(Interpreter& interpreter, const Value& self, Arguments& given);

// str.isupper, str.islower.
bool all_cased(std::string_view bytes, bool upper);

}  // namespace longspur::io::chat
