// Iteration, length, subscripts and slices.
#include <algorithm>

#include "io/chat/format.h"
#include "io/chat/operators.h"
#include "io/chat/unicode.h"

namespace longspur::io::chat {
namespace {

constexpr int64_t kBytesPerStep = 256;
constexpr int64_t kCharacterBytes = sizeof(Value) + sizeof(Text) + 16;

std::vector<Value> characters(Budget& budget, const Text& text) {
  const std::string& bytes = text.bytes();
  const size_t count = count_code_points(bytes);
  budget.allocate(static_cast<int64_t>(count) * kCharacterBytes);
  std::vector<Value> out;
  out.reserve(count);
  for (size_t at = 0, width = 0; at < bytes.size(); at += width) {
    decode_at(bytes, at, &width);
    out.push_back(Value::text(text.substr(at, at + width)));
  }
  return out;
}

std::vector<Value> view_items(const View& view) {
  std::vector<Value> out;
  for (const auto& [key, value] : view.dict->entries) {
    switch (view.kind) {
      case View::Kind::keys:
        out.push_back(key);
        break;
      case View::Kind::values:
        out.push_back(value);
        break;
      case View::Kind::items:
        out.push_back(make_sequence({key, value}, true, view.special));
        break;
    }
  }
  return out;
}

struct Bounds {
  Integer start, stop, step, count;
};

// slice.indices(size).
Bounds bounds(Integer size, const Value* start, const Value* stop, const Value* step) {
  const auto given = [](const Value* value) { return value != nullptr && !value->is_none(); };
  Integer by = given(step) ? step->as_integer() : 1;
  require(by != 0, "slice step cannot be zero");
  by = std::clamp<Integer>(by, -INT64_MAX, INT64_MAX);  // a longer one takes the same elements
  const auto clip = [&](const Value* value, Integer fallback) {
    if (!given(value)) return fallback;
    Integer at = value->as_integer();
    if (at < 0) at += size;
    return by > 0 ? std::clamp<Integer>(at, 0, size) : std::clamp<Integer>(at, -1, size - 1);
  };
  Bounds out{clip(start, by > 0 ? 0 : size - 1), clip(stop, by > 0 ? size : -1), by, 0};
  if (by > 0 && out.start < out.stop) out.count = (out.stop - out.start - 1) / by + 1;
  if (by < 0 && out.start > out.stop) out.count = (out.start - out.stop - 1) / -by + 1;
  return out;
}

Value slice_text(Budget& budget, const Value& value, const Bounds& cut) {
  const Text& text = value.as_text();
  const std::string& bytes = text.bytes();
  if (cut.count == 0) return Value::text(Text(), value.markup);
  if (cut.step == 1) {
    const size_t begin = offset_of(bytes, static_cast<size_t>(cut.start));
    const std::string_view rest = std::string_view(bytes).substr(begin);
    const size_t length = offset_of(rest, static_cast<size_t>(cut.count));
    budget.allocate(static_cast<int64_t>(length));
    return Value::text(text.substr(begin, begin + length), value.markup);
  }
  budget.spend(static_cast<int64_t>(cut.count) / 8);
  budget.allocate(static_cast<int64_t>(bytes.size() * (sizeof(size_t) + 1)));
  std::vector<size_t> offsets;
  for (size_t at = 0, width = 0; at < bytes.size(); at += width) {
    offsets.push_back(at);
    decode_at(bytes, at, &width);
  }
  offsets.push_back(bytes.size());
  Text out;
  for (Integer i = 0; i < cut.count; ++i) {
    const auto at = static_cast<size_t>(cut.start + i * cut.step);
    out.append(std::string_view(bytes).substr(offsets[at], offsets[at + 1] - offsets[at]),
               text.special_at(offsets[at]));
  }
  return Value::text(std::move(out), value.markup);
}

Value missing(const Value& value, const std::string& element) {
  return Value::undefined(concat(describe_type(value), " has no element ", element));
}

}  // namespace

std::vector<Value> iterate(Budget& budget, const Value& value) {
  if (value.is_undefined()) return {};
  if (value.is_text()) return characters(budget, value.as_text());
  if (value.is_sequence()) {
    budget.allocate(items_bytes(value.as_sequence().items.size()));
    return value.as_sequence().items;
  }
  if (value.is_dict()) {
    budget.allocate(items_bytes(value.as_dict().entries.size()));
    return view_items({View::Kind::keys, std::get<DictPtr>(value.data), value.special});
  }
  if (const auto* view = std::get_if<std::shared_ptr<const View>>(&value.data)) {
    budget.allocate(3 * items_bytes((*view)->dict->entries.size()));
    return view_items(**view);
  }
  if (const auto* stream = std::get_if<std::shared_ptr<Stream>>(&value.data)) {
    const std::shared_ptr<Stream> source = *stream;
    std::vector<Value> rest;
    while (std::optional<Value> next = source->pull()) {
      budget.allocate(items_bytes(1));
      rest.push_back(std::move(*next));
    }
    return rest;
  }
  if (const auto* range = std::get_if<std::shared_ptr<const Range>>(&value.data)) {
    budget.allocate(items_bytes(static_cast<size_t>((*range)->size())));
    std::vector<Value> out;
    for (Integer i = 0; i < (*range)->size(); ++i) {
      out.push_back(Value::integer((*range)->at(i), value.special));
    }
    return out;
  }
  fail("'", type_name(value), "' object is not iterable");
}

Integer length(Budget& budget, const Value& value) {
  if (value.is_undefined()) return 0;
  if (value.is_text()) {
    budget.spend(static_cast<int64_t>(value.bytes().size()) / kBytesPerStep);
    return static_cast<Integer>(count_code_points(value.bytes()));
  }
  if (value.is_sequence()) return static_cast<Integer>(value.as_sequence().items.size());
  if (value.is_dict()) return static_cast<Integer>(value.as_dict().entries.size());
  if (const auto* view = std::get_if<std::shared_ptr<const View>>(&value.data)) {
    return static_cast<Integer>((*view)->dict->entries.size());
  }
  if (const auto* range = std::get_if<std::shared_ptr<const Range>>(&value.data)) {
    return (*range)->size();
  }
  fail("object of type '", type_name(value), "' has no len()");
}

Value get_element(Budget& budget, const Value& value, const Value& index) {
  require_defined(value);
  if (value.is_dict()) {
    const Value* found = is_hashable(index) ? value.as_dict().find(index) : nullptr;
    return found != nullptr ? *found : missing(value, repr(budget, index).bytes());
  }
  const auto* range = std::get_if<std::shared_ptr<const Range>>(&value.data);
  if (!index.is_integral() || !(value.is_text() || value.is_sequence() || range != nullptr)) {
    return missing(value, repr(budget, index).bytes());
  }
  const Integer size = length(budget, value);
  Integer at = index.as_integer();
  if (at < 0) at += size;
  if (at < 0 || at >= size) return missing(value, integer_text(index.as_integer()));
  if (range != nullptr) return Value::integer((*range)->at(at), value.special);
  if (value.is_sequence()) return value.as_sequence().items[static_cast<size_t>(at)];
  const std::string& bytes = value.bytes();
  budget.spend(static_cast<int64_t>(bytes.size()) / kBytesPerStep);
  const size_t begin = offset_of(bytes, static_cast<size_t>(at));
  size_t width = 0;
  decode_at(bytes, begin, &width);
  return Value::text(value.as_text().substr(begin, begin + width), value.markup);
}

Value get_slice(
    Budget& budget, const Value& value, const Value* start, const Value* stop, const Value* step) {
  require_defined(value);
  const auto* range = std::get_if<std::shared_ptr<const Range>>(&value.data);
  if (value.is_dict()) fail("unhashable type: 'slice'");
  if (!value.is_text() && !value.is_sequence() && range == nullptr) {
    fail("'", type_name(value), "' object is not subscriptable");
  }
  for (const Value* bound : {start, stop, step}) {
    require(bound == nullptr || bound->is_none() || bound->is_integral(),
            "slice indices must be integers or None");
  }
  const Bounds cut = bounds(length(budget, value), start, stop, step);
  if (value.is_text()) return slice_text(budget, value, cut);
  if (range != nullptr) {
    Range part{(*range)->at(cut.start), (*range)->at(cut.stop), (*range)->step};
    const Integer step = part.step * cut.step;
    if (step >= INT64_MIN && step <= INT64_MAX) part.step = step;  // else it would grow for ever
    return {Value::Data(std::make_shared<const Range>(part)), value.special};
  }
  const Sequence& sequence = value.as_sequence();
  budget.allocate(items_bytes(static_cast<size_t>(cut.count)));
  std::vector<Value> items;
  for (Integer i = 0; i < cut.count; ++i) {
    items.push_back(sequence.items[static_cast<size_t>(cut.start + i * cut.step)]);
  }
  return make_sequence(std::move(items), sequence.tuple, value.special);
}

}  // namespace longspur::io::chat
