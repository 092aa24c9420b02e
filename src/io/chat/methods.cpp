// The methods of lists, tuples, dicts, numbers; methods that change their value are named as
// unsafe.
#include "io/chat/methods.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "io/chat/arguments.h"
#include "io/chat/builtins.h"

namespace longspur::io::chat {
namespace {

constexpr std::array<std::string_view, 8> kListChanges = {"append", "clear", "pop",    "reverse",
                                                          "insert", "sort",  "extend", "remove"};
constexpr std::array<std::string_view, 5> kDictChanges = {"clear", "pop", "popitem", "setdefault",
                                                          "update"};

template <View::Kind kind>
Value view_method(Interpreter&, const Value& self, Arguments& given) {
  const Parameters p("dict method", given, {});
  auto view = std::make_shared<const View>(View{kind, std::get<DictPtr>(self.data), self.special});
  return {Value::Data(std::move(view)), self.special};
}

Value get_method(Interpreter&, const Value& self, Arguments& given) {
  const Parameters p("get", given, {"key", "default"}, 1);
  const Value* found = self.as_dict().find(p.at(0));
  return found != nullptr ? *found : p.or_else(1, Value());
}

Value copy_method(Interpreter&, const Value& self, Arguments& given) {
  const Parameters p("copy", given, {});
  return self;  // nothing can change either of them
}

Value count_method(Interpreter& in, const Value& self, Arguments& given) {
  const Parameters p("count", given, {"value"}, 1);
  Integer count = 0;
  for (const Value& item : self.as_sequence().items) {
    if (equal(in.budget(), item, p.at(0))) ++count;
  }
  return Value::integer(count);
}

Value index_method(Interpreter& in, const Value& self, Arguments& given) {
  const Parameters p("index", given, {"value", "start", "stop"}, 1);
  const auto& items = self.as_sequence().items;
  const auto size = static_cast<Integer>(items.size());
  const auto place = [&](size_t i, Integer fallback) {
    const Integer at = p.integer(i, fallback);
    return std::clamp<Integer>(at < 0 ? at + size : at, 0, size);
  };
  for (Integer i = place(1, 0); i < place(2, size); ++i) {
    if (equal(in.budget(), items[static_cast<size_t>(i)], p.at(0))) return Value::integer(i);
  }
  fail("the value is not in the ", type_name(self));
}

Value is_integer_method(Interpreter&, const Value& self, Arguments&) {
  return Value::boolean(!std::isinf(self.as_double()) &&
                        std::floor(self.as_double()) == self.as_double());
}

Value bit_length_method(Interpreter&, const Value& self, Arguments&) {
  Integer value = self.as_integer(), bits = 0;
  for (; value != 0; value /= 2) ++bits;
  return Value::integer(bits);
}

Method find_container_method(const Value& self, std::string_view name) {
  if (self.is_dict()) {
    if (name == "items") return view_method<View::Kind::items>;
    if (name == "keys") return view_method<View::Kind::keys>;
    if (name == "values") return view_method<View::Kind::values>;
    if (name == "get") return get_method;
    if (name == "copy") return copy_method;
  }
  if (self.is_sequence()) {
    if (name == "count") return count_method;
    if (name == "index") return index_method;
    if (name == "copy" && !self.as_sequence().tuple) return copy_method;
  }
  if (self.is<double>() && name == "is_integer") return is_integer_method;
  if (self.is_integral() && name == "bit_length") return bit_length_method;
  return nullptr;
}

bool changes(const Value& self, std::string_view name) {
  const auto in = [name](const auto& names) {
    return std::find(names.begin(), names.end(), name) != names.end();
  };
  return (self.is_dict() && in(kDictChanges)) ||
         (self.is_sequence() && !self.as_sequence().tuple && in(kListChanges));
}

// What Python shows as fields of built-in values.
std::optional<Value> find_field(const Value& self, std::string_view name) {
  if (self.is_sequence() && self.as_sequence().group) {
    if (name == "grouper") return self.as_sequence().items[0];
    if (name == "list") return self.as_sequence().items[1];
  }
  if (self.is_integral() && (name == "real" || name == "numerator")) {
    return Value::integer(self.as_integer(), self.special);
  }
  if (self.is_integral() && name == "imag") return Value::integer(0);
  if (self.is_integral() && name == "denominator") return Value::integer(1);
  if (self.is<double>() && name == "real") return self;
  if (self.is<double>() && name == "imag") return Value::real(0);
  if (const auto* range = std::get_if<std::shared_ptr<const Range>>(&self.data)) {
    if (name == "start") return Value::integer((*range)->start);
    if (name == "stop") return Value::integer((*range)->stop);
    if (name == "step") return Value::integer((*range)->step);
  }
  return std::nullopt;
}

}  // namespace

std::optional<Value> find_method(const Value& receiver, std::string_view name) {
  const Method method =
      receiver.is_text() ? find_text_method(name) : find_container_method(receiver, name);
  if (method != nullptr) return make_object(std::make_shared<BoundMethod>(receiver, method));
  if (changes(receiver, name)) {
    return Value::undefined(concat("access to attribute '", name, "' of '", type_name(receiver),
                                   "' object is unsafe."));
  }
  return find_field(receiver, name);
}

}  // namespace longspur::io::chat
