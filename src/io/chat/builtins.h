// Filters, tests, methods and globals by name.
#pragma once

#include <optional>
#include <string_view>

#include "io/chat/ast.h"

namespace longspur::io::chat {

Filter find_filter(std::string_view name);  // nullptr when unknown
Test find_test(std::string_view name);
// range, namespace, dict and so on; nothing when there is no such global.
std::optional<Value> find_global(std::string_view name);

// The method of a value, bound to it; nothing when there is no such method. Methods that change
// their value come as an undefined that names the reason.
std::optional<Value> find_method(const Value& receiver, std::string_view name);

}  // namespace longspur::io::chat
