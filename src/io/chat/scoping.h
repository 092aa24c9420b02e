// Which names a block hides before it assigns them. jinja2 decides by position: a name that a block
// assigns without having read it, and that no block around it knows, is undefined in that block
// until then, even where the conversation has a value of this name.
#pragma once

#include "io/chat/ast.h"

namespace longspur::io::chat {

void find_hidden_names(Template& parsed);

}  // namespace longspur::io::chat
