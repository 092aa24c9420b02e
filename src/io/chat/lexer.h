// Template source to tokens: text, tags and the tokens inside of them, with jinja2's rules for
// blanks around tags under trim_blocks and lstrip_blocks, as chat templates are written for.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "io/chat/value.h"

namespace longspur::io::chat {

struct Position {
  uint32_t line = 1, column = 1;  // column in characters
};

// "line 3, column 7".
std::string to_string(Position position);

enum class TokenKind : uint8_t {
  data,  // text between tags
  variable_begin,
  variable_end,
  block_begin,
  block_end,
  name,
  string,
  integer,
  real,
  op,
  end,
};

struct Token {
  TokenKind kind = TokenKind::end;
  Position position;
  std::string text;  // data, name, the contents of a string, or the operator's characters
  Integer integer = 0;
  double real = 0;
};

// Throws Error with line and column.
std::vector<Token> tokenize(std::string_view source);

[[noreturn]] void fail_at(Position position, const std::string& message);

}  // namespace longspur::io::chat
