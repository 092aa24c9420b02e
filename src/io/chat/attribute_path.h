// The attribute= parameter of filters: "address.city", "items.0", an index, or nothing.
#pragma once

#include <vector>

#include "io/chat/interpreter.h"

namespace longspur::io::chat {

class AttributePath {
 public:
  AttributePath() = default;
  AttributePath(Budget& budget, const Value& attribute, Value fallback = Value());
  // What the path leads to; the fallback, unless it is None, stands for what is undefined.
  Value get(Interpreter& in, Value item) const;

 private:
  std::vector<Value> parts_;
  Value fallback_;
};

// "age,name": a path for each.
std::vector<AttributePath> attribute_paths(Budget& budget, const Value& attribute);

// Lower case of a string, other values as they are: the key under which filters compare.
Value ignore_case(Interpreter& in, const Value& value);

}  // namespace longspur::io::chat
