// map, select and reject, which apply other filters and tests by name.
#include <algorithm>

#include "io/chat/arguments.h"
#include "io/chat/attribute_path.h"
#include "io/chat/builtins.h"
#include "io/chat/filters.h"
#include "io/chat/objects.h"

namespace longspur::io::chat {
namespace {

std::string name_from(const Value& value, const char* kind) {
  if (!value.is_text())
    fail("found '", type_name(value), "' object, expected the name of a ", kind);
  return value.bytes();
}

int deepest(const Arguments& given) {
  int depth = 0;
  for (const Value& value : given.positional) depth = std::max(depth, depth_of(value));
  for (const auto& entry : given.named) depth = std::max(depth, depth_of(entry.second));
  return depth;
}

// A generator over the items of a value. jinja2's look at nothing before they are asked, not even
// at whether they can be iterated; those that start with a false value stay empty.
Value lazily(Interpreter& in,
             const Value& value,
             const Arguments& given,
             std::function<bool(Value&)> step) {
  const auto start = [&in, value] {
    return truthy(value) ? iterate(in.budget(), value) : std::vector<Value>();
  };
  return make_stream(start, std::move(step), std::max(depth_of(value), deepest(given)),
                     value.special);
}

std::function<bool(Value&)> map_step(Interpreter& in, const Arguments& given) {
  if (given.positional.empty()) {
    require(!given.named.empty(), "map requires a filter argument");
    const Parameters p("map", given, {"attribute", "default"}, 1);
    return [&in, path = AttributePath(in.budget(), p.at(0), p.or_else(1, Value()))](Value& item) {
      item = path.get(in, item);
      return true;
    };
  }
  const std::string name = name_from(given.positional[0], "filter");
  const Filter filter = find_filter(name);
  require(filter != nullptr, "no filter named '", name, "'");
  Arguments rest{{given.positional.begin() + 1, given.positional.end()}, given.named};
  return [&in, filter, rest = std::move(rest)](Value& item) {
    in.budget().spend(1);
    Arguments each = rest;
    item = filter(in, item, each);
    return true;
  };
}

// Keeps the items whose test (or truth) is `wanted`; by_attribute: of an attribute of theirs.
template <bool wanted, bool by_attribute>
std::function<bool(Value&)> select_step(Interpreter& in, const Arguments& given) {
  const size_t offset = by_attribute ? 1 : 0;
  require(given.positional.size() >= offset, "missing parameter for attribute name");
  AttributePath path =
      by_attribute ? AttributePath(in.budget(), given.positional[0]) : AttributePath();
  if (given.positional.size() <= offset) {
    return [&in, path = std::move(path)](Value& item) {
      in.budget().spend(1);
      return truthy(path.get(in, item)) == wanted;
    };
  }
  const std::string name = name_from(given.positional[offset], "test");
  const Test test = find_test(name);
  require(test != nullptr, "no test named '", name, "'");
  Arguments rest{
      {given.positional.begin() + static_cast<ptrdiff_t>(offset) + 1, given.positional.end()},
      given.named};
  return [&in, path = std::move(path), test, rest = std::move(rest)](Value& item) {
    in.budget().spend(1);
    Arguments each = rest;
    return test(in, path.get(in, item), each) == wanted;
  };
}

// The step is made when the first item is asked for: until then nothing can be wrong.
template <std::function<bool(Value&)> (*make_step)(Interpreter&, const Arguments&)>
Value lazy_filter(Interpreter& in, const Value& value, Arguments& given) {
  std::function<bool(Value&)> step;
  return lazily(in, value, given, [&in, given, step](Value& item) mutable {
    if (!step) step = make_step(in, given);
    return step(item);
  });
}

Value attr_filter(Interpreter& in, const Value& value, Arguments& given) {
  const Parameters p("attr", given, {"name"}, 1);
  require_defined(value);
  // As value.name, but without looking into mappings.
  if (auto method = find_method(value, p.text(0).bytes())) return std::move(*method);
  if (!value.is_dict()) return in.attribute(value, p.text(0).bytes());
  return Value::undefined(
      concat("'", describe_type(value), "' has no attribute '", p.text(0).bytes(), "'"));
}

}  // namespace

const FilterTable& selection_filters() {
  static const FilterTable kFilters = {{"attr", attr_filter},
                                       {"map", lazy_filter<map_step>},
                                       {"reject", lazy_filter<select_step<false, false>>},
                                       {"rejectattr", lazy_filter<select_step<false, true>>},
                                       {"select", lazy_filter<select_step<true, false>>},
                                       {"selectattr", lazy_filter<select_step<true, true>>}};
  return kFilters;
}

}  // namespace longspur::io::chat
