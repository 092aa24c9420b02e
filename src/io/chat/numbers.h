// Python's int() and float() of strings.
#pragma once

#include <optional>
#include <string_view>

#include "io/chat/value.h"

namespace longspur::io::chat {

std::optional<Integer> parse_integer(std::string_view text, int base);  // nothing: not a number
std::optional<double> parse_real(std::string_view text);

}  // namespace longspur::io::chat
