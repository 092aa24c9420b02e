// The methods of lists, tuples, dicts, numbers; methods that change their value are named as
// unsafe.
#include "io/chat/methods.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "io/chat/arguments.h"
#include "io/chat/builtins.h"
#include "io/chat/printf.h"

namespace longspur::io::chat {
namespace {

constexpr std::array<std::string_view, 8> kListChanges = {"append", "clear", "pop",    "reverse",
                                                          "insert", "sort",  "extend", "remove"};
constexpr std::array<std::string_view, 5> kDictChanges = {"clear", "pop", "popitem", "setdefault",
                                                          "update"};

template <View::Kind kind>
Value view_method(Interpreter&, const Value& self, Arguments& given) {
  const Parameters p = Parameters::positional("dict method", given, {});
  auto view = std::make_shared<const View>(View{kind, std::get<DictPtr>(self.data), self.special});
  return {Value::Data(std::move(view)), self.special};
}

Value get_method(Interpreter&, const Value& self, Arguments& given) {
  const Parameters p = Parameters::positional("get", given, {"key", "default"}, 1);
  const Value* found = self.as_dict().find(p.at(0));
  return found != nullptr ? *found : p.or_else(1, Value());
}

Value copy_method(Interpreter&, const Value& self, Arguments& given) {
  const Parameters p = Parameters::positional("copy", given, {});
  return self;  // nothing can change either of them
}

// Of a list, a tuple or a range.
Value count_method(Interpreter& in, const Value& self, Arguments& given) {
  const Parameters p = Parameters::positional("count", given, {"value"}, 1);
  Integer count = 0;
  for (const Value& item : iterate(in.budget(), self)) {
    if (equal(in.budget(), item, p.at(0))) ++count;
  }
  return Value::integer(count);
}

Value index_method(Interpreter& in, const Value& self, Arguments& given) {
  const Parameters p = Parameters::positional("index", given, {"value", "start", "stop"}, 1);
  const std::vector<Value> items = iterate(in.budget(), self);
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

Value is_integer_method(Interpreter&, const Value& self, Arguments& given) {
  Parameters::positional("is_integer", given, {});
  return Value::boolean(!std::isinf(self.as_double()) &&
                        std::floor(self.as_double()) == self.as_double());
}

Value bit_length_method(Interpreter&, const Value& self, Arguments& given) {
  Parameters::positional("bit_length", given, {});
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
  if (self.is_sequence() || self.is<std::shared_ptr<const Range>>()) {
    if (name == "count") return count_method;
    if (name == "index") return index_method;
    if (name == "copy" && self.is_sequence() && !self.as_sequence().tuple) return copy_method;
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

// Methods of a string that is marked as safe: their results are too, what comes in is escaped.
struct MarkupMethod : Object {
  MarkupMethod(Value its_receiver, std::string_view its_name, Method its_method)
      : receiver(std::move(its_receiver)), name(its_name), method(its_method) {}
  const char* type() const override { return "method"; }
  Value call(Interpreter& in, Arguments& given) override {
    const auto escaped = [](Value& value) {
      if (value.is_text() && !value.markup) value = Value::text(escape_html(value.as_text()), true);
    };
    if (name == "replace" || name == "ljust" || name == "rjust" || name == "center") {
      if (given.positional.size() > 1) escaped(given.positional[1]);
    } else if (name == "format") {
      for (Value& value : given.positional) escaped(value);
      for (auto& entry : given.named) escaped(entry.second);
    } else if (name == "join" && !given.positional.empty()) {
      std::vector<Value> items = iterate(in.budget(), given.positional[0]);
      for (Value& item : items) {
        if (!item.is_text()) item = Value::text(in.str(item));
        escaped(item);
      }
      given.positional[0] = in.list(std::move(items), true);
    }
    return marked(in, method(in, receiver, given));
  }
  static Value marked(Interpreter& in, Value value) {
    if (value.is_text()) value.markup = true;
    if (!value.is_sequence()) return value;
    std::vector<Value> items = value.as_sequence().items;
    for (Value& item : items) item.markup = item.is_text();
    return in.list(std::move(items), value.special, value.as_sequence().tuple);
  }
  Value receiver;
  std::string name;
  Method method;
};

}  // namespace

std::optional<Value> find_method(const Value& receiver, std::string_view name) {
  const Method method =
      receiver.is_text() ? find_text_method(name) : find_container_method(receiver, name);
  if (method != nullptr && receiver.markup) {
    return make_object(std::make_shared<MarkupMethod>(receiver, name, method));
  }
  if (method != nullptr) return make_object(std::make_shared<BoundMethod>(receiver, method));
  if (changes(receiver, name)) {
    return Value::undefined(concat("access to attribute '", name, "' of '", type_name(receiver),
                                   "' object is unsafe."));
  }
  return find_field(receiver, name);
}

}  // namespace longspur::io::chat
