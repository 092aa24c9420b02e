// Filters on lists, mappings and what can be iterated.
#include <algorithm>

#include "io/chat/arguments.h"
#include "io/chat/attribute_path.h"
#include "io/chat/builtins.h"
#include "io/chat/filters.h"
#include "io/chat/objects.h"
#include "io/chat/text_ops.h"

namespace longspur::io::chat {
namespace {

bool origin_of(const Value& value) {
  return value.is_text() ? value.as_text().all_special() : value.special;
}

Value length_filter(Interpreter& in, const Value& value, Arguments& given) {
  const Parameters p("length", given, {});
  if (const auto* object = std::get_if<std::shared_ptr<Object>>(&value.data)) {
    Value found;
    if ((*object)->attribute(in, "length", &found)) return found;
  }
  return Value::integer(length(in.budget(), value), true);
}

Value first_filter(Interpreter& in, const Value& value, Arguments& given) {
  const Parameters p("first", given, {});
  const char* empty = "No first item, sequence was empty.";
  if (const auto* stream = std::get_if<std::shared_ptr<Stream>>(&value.data)) {
    const std::shared_ptr<Stream> source = *stream;
    const std::optional<Value> item = source->pull();
    return item ? *item : Value::undefined(empty);
  }
  if (value.is_text() && !value.bytes().empty()) {
    return get_element(in.budget(), value, Value::integer(0));
  }
  const std::vector<Value> items = iterate(in.budget(), value);
  return items.empty() ? Value::undefined(empty) : items.front();
}

void require_reversible(const Value& value) {
  if (value.is<std::shared_ptr<Stream>>()) {
    fail("'", type_name(value), "' object is not reversible");
  }
}

Value last_filter(Interpreter& in, const Value& value, Arguments& given) {
  const Parameters p("last", given, {});
  require_reversible(value);
  const std::vector<Value> items = iterate(in.budget(), value);
  return items.empty() ? Value::undefined("No last item, sequence was empty.") : items.back();
}

Value list_filter(Interpreter& in, const Value& value, Arguments& given) {
  const Parameters p("list", given, {});
  return in.list(iterate(in.budget(), value), origin_of(value));
}

Value reverse_filter(Interpreter& in, const Value& value, Arguments& given) {
  const Parameters p("reverse", given, {});
  if (value.is_text()) {
    const Value back = Value::integer(-1);
    return get_slice(in.budget(), value, nullptr, nullptr, &back);
  }
  std::vector<Value> items = iterate(in.budget(), value);
  std::reverse(items.begin(), items.end());
  if (value.is<std::shared_ptr<Stream>>()) return in.list(std::move(items), value.special);
  return make_stream(
      std::move(items), value.special,
      value.is_sequence() && !value.as_sequence().tuple ? "list_reverseiterator" : "reversed");
}

Value join_filter(Interpreter& in, const Value& value, Arguments& given) {
  const Parameters p("join", given, {"d", "attribute"});
  const AttributePath path = p.has_value(1) ? AttributePath(in.budget(), p.at(1)) : AttributePath();
  std::vector<Text> parts;
  for (const Value& item : iterate(in.budget(), value)) {
    in.budget().spend(1);
    parts.push_back(in.str(path.get(in, item)));
  }
  return Value::text(join(in.budget(), p.has(0) ? in.str(p.at(0)) : Text(), parts));
}

Value default_filter(Interpreter&, const Value& value, Arguments& given) {
  const Parameters p("default", given, {"default_value", "boolean"});
  if (value.is_undefined() || (p.flag(1, false) && !truthy(value))) {
    return p.or_else(0, Value::text("", true));
  }
  return value;
}

// A generator that works all out at the first item.
Value later(const Value& value, int depth, std::function<std::vector<Value>()> start) {
  return make_stream(std::move(start), nullptr, std::max(depth_of(value), depth), value.special);
}

Value items_filter(Interpreter& in, const Value& value, Arguments& given) {
  const Parameters p("items", given, {});
  return later(value, 0, [&in, value]() -> std::vector<Value> {
    if (value.is_undefined()) return {};
    require(value.is_dict(), "can only get item pairs from a mapping");
    const View view{View::Kind::items, std::get<DictPtr>(value.data), value.special};
    return iterate(in.budget(),
                   Value(Value::Data(std::make_shared<const View>(view)), value.special));
  });
}

// A stable sort that pays for comparisons and stays a valid order when one throws.
void sort_by_key(Interpreter& in, std::vector<std::pair<Value, Value>>& keyed, bool reverse) {
  in.budget().spend(static_cast<int64_t>(keyed.size()));
  const auto ascending = [&in](const auto& a, const auto& b) {
    return less(in.budget(), a.first, b.first);
  };
  if (!reverse) {
    std::stable_sort(keyed.begin(), keyed.end(), ascending);
    return;
  }
  std::reverse(keyed.begin(), keyed.end());  // equal ones keep their order
  std::stable_sort(keyed.begin(), keyed.end(), ascending);
  std::reverse(keyed.begin(), keyed.end());
}

Value second_of(Interpreter& in, std::vector<std::pair<Value, Value>> keyed, bool special) {
  std::vector<Value> out;
  for (auto& entry : keyed) out.push_back(std::move(entry.second));
  return in.list(std::move(out), special);
}

Value dictsort(Interpreter& in, const Value& value, Arguments& given) {
  const Parameters p("dictsort", given, {"case_sensitive", "by", "reverse"});
  const std::string by = p.has(1) ? in.str(p.at(1)).bytes() : "key";
  require(by == "key" || by == "value", "dictsort: found '", by, "', expected key or value");
  require_defined(value);
  require(value.is_dict(), "dictsort: expected a mapping");
  std::vector<std::pair<Value, Value>> keyed;
  for (const auto& [key, element] : value.as_dict().entries) {
    const Value& wanted = by == "key" ? key : element;
    keyed.emplace_back(p.flag(0, false) ? wanted : ignore_case(in, wanted),
                       in.list({key, element}, value.special, true));
  }
  sort_by_key(in, keyed, p.flag(2, false));
  return second_of(in, std::move(keyed), value.special);
}

Value sort_filter(Interpreter& in, const Value& value, Arguments& given) {
  const Parameters p("sort", given, {"reverse", "case_sensitive", "attribute"});
  const std::vector<AttributePath> paths = attribute_paths(in.budget(), p.or_else(2, Value()));
  std::vector<std::pair<Value, Value>> keyed;
  for (Value& item : iterate(in.budget(), value)) {
    std::vector<Value> key;
    for (const AttributePath& path : paths) {
      const Value found = path.get(in, item);
      key.push_back(p.flag(1, false) ? found : ignore_case(in, found));
    }
    keyed.emplace_back(in.list(std::move(key), true), std::move(item));
  }
  sort_by_key(in, keyed, p.flag(0, false));
  return second_of(in, std::move(keyed), origin_of(value));
}

Value unique_filter(Interpreter& in, const Value& value, Arguments& given) {
  const Parameters p("unique", given, {"case_sensitive", "attribute"});
  const bool case_sensitive = p.flag(0, false);
  const auto start = [&in, value] { return iterate(in.budget(), value); };
  const auto step = [&in, case_sensitive, path = AttributePath(in.budget(), p.or_else(1, Value())),
                     seen = std::make_shared<Dict>()](Value& item) {
    in.budget().spend(1);
    Value key = path.get(in, item);
    if (!case_sensitive) key = ignore_case(in, key);
    if (seen->find(key) != nullptr) return false;
    seen->set(std::move(key), Value());
    return true;
  };
  return make_stream(start, step, depth_of(value), origin_of(value));
}

template <bool largest>
Value extreme(Interpreter& in, const Value& value, Arguments& given) {
  const Parameters p(largest ? "max" : "min", given, {"case_sensitive", "attribute"});
  const AttributePath path(in.budget(), p.or_else(1, Value()));
  std::optional<std::pair<Value, Value>> best;
  for (Value& item : iterate(in.budget(), value)) {
    Value key = path.get(in, item);
    if (!p.flag(0, false)) key = ignore_case(in, key);
    if (!best || (largest ? less(in.budget(), best->first, key, ">")
                          : less(in.budget(), key, best->first))) {
      best.emplace(std::move(key), std::move(item));
    }
  }
  return best ? best->second : Value::undefined("No aggregated item, sequence was empty.");
}

Value sum_filter(Interpreter& in, const Value& value, Arguments& given) {
  const Parameters p("sum", given, {"attribute", "start"});
  const AttributePath path(in.budget(), p.or_else(0, Value()));
  Value total = p.or_else(1, Value::integer(0));
  require(!total.is_text(), "sum() can't sum strings [use ''.join(seq) instead]");
  for (const Value& item : iterate(in.budget(), value)) {
    in.budget().spend(1);
    total = arithmetic(in.budget(), Arithmetic::add, total, path.get(in, item));
  }
  return total;
}

std::vector<Value> batches(Interpreter& in, const Value& value, Integer size, const Value& fill) {
  std::vector<Value> rows, row;
  for (Value& item : iterate(in.budget(), value)) {
    if (static_cast<Integer>(row.size()) == size) {
      rows.push_back(in.list(std::exchange(row, {}), value.special));
    }
    row.push_back(std::move(item));
  }
  if (row.empty()) return rows;
  if (!fill.is_none()) {
    in.budget().allocate(items_bytes(static_cast<size_t>(std::clamp<Integer>(size, 0, INT32_MAX))));
    while (static_cast<Integer>(row.size()) < size) row.push_back(fill);
  }
  rows.push_back(in.list(std::move(row), value.special));
  return rows;
}

Value batch(Interpreter& in, const Value& value, Arguments& given) {
  const Parameters p("batch", given, {"linecount", "fill_with"}, 1);
  const Integer size = p.integer(0, 0);
  const Value fill = p.or_else(1, Value());
  return later(value, depth_of(fill) + 1,
               [&in, value, size, fill] { return batches(in, value, size, fill); });
}

std::vector<Value> slices(Interpreter& in, const Value& value, Integer count, const Value& fill) {
  const std::vector<Value> items = iterate(in.budget(), value);
  require(count != 0, "integer division or modulo by zero");
  const auto size = static_cast<Integer>(items.size());
  std::vector<Value> out;
  Integer begin = 0;
  for (Integer i = 0; i < count; ++i) {
    in.budget().spend(1);
    const Integer end = begin + size / count + (i < size % count ? 1 : 0);
    std::vector<Value> part(items.begin() + static_cast<ptrdiff_t>(begin),
                            items.begin() + static_cast<ptrdiff_t>(end));
    if (!fill.is_none() && i >= size % count) part.push_back(fill);
    out.push_back(in.list(std::move(part), value.special));
    begin = end;
  }
  return out;
}

Value slice(Interpreter& in, const Value& value, Arguments& given) {
  const Parameters p("slice", given, {"slices", "fill_with"}, 1);
  const Integer count = p.integer(0, 0);
  const Value fill = p.or_else(1, Value());
  return later(value, depth_of(fill) + 1,
               [&in, value, count, fill] { return slices(in, value, count, fill); });
}

Value groupby(Interpreter& in, const Value& value, Arguments& given) {
  const Parameters p("groupby", given, {"attribute", "default", "case_sensitive"}, 1);
  const AttributePath path(in.budget(), p.at(0), p.or_else(1, Value()));
  const auto key_of = [&](const Value& item) {
    const Value key = path.get(in, item);
    return p.flag(2, false) ? key : ignore_case(in, key);
  };
  std::vector<std::pair<Value, Value>> keyed;
  for (Value& item : iterate(in.budget(), value)) {
    Value key = key_of(item);
    keyed.emplace_back(std::move(key), std::move(item));
  }
  sort_by_key(in, keyed, false);
  std::vector<Value> groups;
  for (size_t begin = 0, end = 0; begin < keyed.size(); begin = end) {
    std::vector<Value> members;
    for (end = begin;
         end < keyed.size() && equal(in.budget(), keyed[end].first, keyed[begin].first); ++end) {
      members.push_back(keyed[end].second);
    }
    if (members.empty()) members.push_back(keyed[end++].second);  // a key unequal to itself
    const Value name = p.flag(2, false) ? keyed[begin].first : path.get(in, members.front());
    auto group = std::make_shared<Sequence>(
        in.list({name, in.list(std::move(members), value.special)}, value.special, true)
            .as_sequence());
    group->group = true;
    groups.emplace_back(Value::Data(SequencePtr(std::move(group))), value.special);
  }
  return in.list(std::move(groups), value.special);
}

}  // namespace

const FilterTable& sequence_filters() {
  static const FilterTable kFilters = {{"batch", batch},
                                       {"count", length_filter},
                                       {"d", default_filter},
                                       {"default", default_filter},
                                       {"dictsort", dictsort},
                                       {"first", first_filter},
                                       {"groupby", groupby},
                                       {"items", items_filter},
                                       {"join", join_filter},
                                       {"last", last_filter},
                                       {"length", length_filter},
                                       {"list", list_filter},
                                       {"max", extreme<true>},
                                       {"min", extreme<false>},
                                       {"reverse", reverse_filter},
                                       {"slice", slice},
                                       {"sort", sort_filter},
                                       {"sum", sum_filter},
                                       {"unique", unique_filter}};
  return kFilters;
}

}  // namespace longspur::io::chat
