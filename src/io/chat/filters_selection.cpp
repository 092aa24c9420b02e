// map, select and reject, which apply other filters and tests by name.
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

Value map_attribute(Interpreter& in, const Value& value, Arguments& given) {
  const Parameters p("map", given, {"attribute", "default"}, 1);
  const AttributePath path(p.at(0), p.or_else(1, Value()));
  std::vector<Value> out;
  for (const Value& item : iterate(in.budget(), value)) out.push_back(path.get(in, item));
  return make_stream(std::move(out), value.special);
}

Value map_filter(Interpreter& in, const Value& value, Arguments& given) {
  if (!truthy(value)) return make_stream({}, value.special);
  if (given.positional.empty()) {
    require(!given.named.empty(), "map requires a filter argument");
    return map_attribute(in, value, given);
  }
  const std::string name = name_from(given.positional[0], "filter");
  const Filter filter = find_filter(name);
  require(filter != nullptr, "no filter named '", name, "'");
  const Arguments rest{{given.positional.begin() + 1, given.positional.end()}, given.named};
  std::vector<Value> out;
  for (const Value& item : iterate(in.budget(), value)) {
    in.budget().spend(1);
    Arguments each = rest;
    out.push_back(filter(in, item, each));
  }
  in.budget().allocate(items_bytes(out.size()));
  return make_stream(std::move(out), value.special);
}

// Keeps the items whose test (or truth) is `wanted`; by_attribute: of an attribute of theirs.
template <bool wanted, bool by_attribute>
Value select(Interpreter& in, const Value& value, Arguments& given) {
  if (!truthy(value)) return make_stream({}, value.special);
  const size_t offset = by_attribute ? 1 : 0;
  require(given.positional.size() >= offset, "missing parameter for attribute name");
  const AttributePath path = by_attribute ? AttributePath(given.positional[0]) : AttributePath();
  Test test = nullptr;
  Arguments rest;
  if (given.positional.size() > offset) {
    const std::string name = name_from(given.positional[offset], "test");
    test = find_test(name);
    require(test != nullptr, "no test named '", name, "'");
    rest = {{given.positional.begin() + static_cast<ptrdiff_t>(offset) + 1, given.positional.end()},
            given.named};
  }
  std::vector<Value> out;
  for (Value& item : iterate(in.budget(), value)) {
    in.budget().spend(1);
    const Value subject = path.get(in, item);
    Arguments each = rest;
    if ((test != nullptr ? test(in, subject, each) : truthy(subject)) == wanted) {
      out.push_back(std::move(item));
    }
  }
  return make_stream(std::move(out), value.special);
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
                                       {"map", map_filter},
                                       {"reject", select<false, false>},
                                       {"rejectattr", select<false, true>},
                                       {"select", select<true, false>},
                                       {"selectattr", select<true, true>}};
  return kFilters;
}

}  // namespace longspur::io::chat
