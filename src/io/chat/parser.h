// Tokens to a template. Throws Error with line and column on what is outside the language.
#pragma once

#include <string_view>

#include "io/chat/ast.h"

namespace longspur::io::chat {

// depth: how deep blocks and expressions may be nested.
Template parse_template(std::string_view source, int depth);

}  // namespace longspur::io::chat
