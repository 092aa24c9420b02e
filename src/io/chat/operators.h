// Python's operators on values.
#pragma once

#include "io/chat/ast.h"
#include "io/chat/budget.h"
#include "io/chat/value.h"

namespace longspur::io::chat {

Value arithmetic(Budget& budget, Arithmetic op, const Value& left, const Value& right);
Value negate(const Value& value, bool negative);  // unary minus or plus

bool equal(Budget& budget, const Value& a, const Value& b);
bool less(Budget& budget, const Value& a, const Value& b, const char* op = "<");
bool contains(Budget& budget, const Value& container, const Value& item);
bool compare(Budget& budget, Relation relation, const Value& a, const Value& b);

// The items a for loop would see; takes them out of a one-shot iterator.
std::vector<Value> iterate(Budget& budget, const Value& value);
// len(value); fails where Python does.
Integer length(Budget& budget, const Value& value);

// value[index] and value[start:stop:step]; undefined where there is no such element.
Value get_element(Budget& budget, const Value& value, const Value& index);
Value get_slice(
    Budget& budget, const Value& value, const Value* start, const Value* stop, const Value* step);

// How many bytes a container of this many items takes, for the budget.
inline int64_t items_bytes(size_t count) { return static_cast<int64_t>(count * sizeof(Value)); }

}  // namespace longspur::io::chat
