// Construction, truth, hashing and naming of values.
#include "io/chat/value.h"

#include <algorithm>
#include <cmath>
#include <functional>

namespace longspur::io::chat {
namespace {

constexpr size_t kMaxKeyWeight = 1000;  // items of a tuple that may be a key, nested ones included
constexpr size_t kIndexedDict = 8;      // entries from which a dict is worth a hash index

int checked_depth(int inner) {
  require(inner < kMaxValueDepth, "values are nested more than ", kMaxValueDepth, " deep");
  return inner + 1;
}

size_t weight_of(const std::vector<Value>& items) {
  size_t weight = 1 + items.size();
  for (const Value& item : items) {
    if (item.is_sequence()) weight += item.as_sequence().weight;
    if (weight > kMaxKeyWeight) return kMaxKeyWeight + 1;
  }
  return weight;
}

int deepest(const std::vector<Value>& items) {
  int depth = 0;
  for (const Value& item : items) depth = std::max(depth, depth_of(item));
  return depth;
}

struct TypeName {
  const char* operator()(const Undefined&) const { return "Undefined"; }
  const char* operator()(const None&) const { return "NoneType"; }
  const char* operator()(bool) const { return "bool"; }
  const char* operator()(Integer) const { return "int"; }
  const char* operator()(double) const { return "float"; }
  const char* operator()(const TextPtr&) const { return "str"; }
  const char* operator()(const SequencePtr& s) const { return s->tuple ? "tuple" : "list"; }
  const char* operator()(const DictPtr&) const { return "dict"; }
  const char* operator()(const std::shared_ptr<const Range>&) const { return "range"; }
  const char* operator()(const std::shared_ptr<const View>& view) const {
    switch (view->kind) {
      case View::Kind::keys:
        return "dict_keys";
      case View::Kind::values:
        return "dict_values";
      default:
        return "dict_items";
    }
  }
  const char* operator()(const std::shared_ptr<Stream>& stream) const { return stream->type; }
  const char* operator()(Namespace*) const { return "Namespace"; }
  const char* operator()(const std::shared_ptr<Object>& object) const { return object->type(); }
};

struct Truth {
  bool operator()(const Undefined&) const { return false; }
  bool operator()(const None&) const { return false; }
  bool operator()(bool value) const { return value; }
  bool operator()(Integer value) const { return value != 0; }
  bool operator()(double value) const { return value != 0; }
  bool operator()(const TextPtr& text) const { return !text->empty(); }
  bool operator()(const SequencePtr& sequence) const { return !sequence->items.empty(); }
  bool operator()(const DictPtr& dict) const { return !dict->entries.empty(); }
  bool operator()(const std::shared_ptr<const Range>& range) const { return range->size() > 0; }
  bool operator()(const std::shared_ptr<const View>& view) const {
    return !view->dict->entries.empty();
  }
  bool operator()(const std::shared_ptr<Stream>&) const { return true; }
  bool operator()(Namespace*) const { return true; }
  bool operator()(const std::shared_ptr<Object>&) const { return true; }
};

}  // namespace

Value Value::undefined(std::string why) {
  return {Data(Undefined{std::make_shared<const std::string>(std::move(why))}), true};
}

Value Value::text(Text text, bool markup) {
  Value value(Data(std::make_shared<const Text>(std::move(text))), true);
  value.markup = markup;
  return value;
}

Integer Value::as_integer() const {
  return is_bool() ? Integer(std::get<bool>(data)) : std::get<Integer>(data);
}

double Value::as_double() const {
  return is<double>() ? std::get<double>(data) : static_cast<double>(as_integer());
}

const Value* Dict::find(const Value& key) const {
  const size_t hash = hash_of(key);
  if (entries.size() >= kIndexedDict) {
    const auto [begin, end] = index.equal_range(hash);
    for (auto it = begin; it != end; ++it) {
      if (equal_scalars(entries[it->second].first, key)) return &entries[it->second].second;
    }
    return nullptr;
  }
  for (const auto& entry : entries) {
    if (equal_scalars(entry.first, key)) return &entry.second;
  }
  return nullptr;
}

const Value* Dict::find(std::string_view key) const {
  if (entries.size() >= kIndexedDict) return find(Value::text(std::string(key), true));
  for (const auto& entry : entries) {
    if (entry.first.is_text() && entry.first.bytes() == key) return &entry.second;
  }
  return nullptr;
}

void Dict::set(Value key, Value value) {
  const size_t hash = hash_of(key);
  depth = std::max({depth, depth_of(key) + 1, depth_of(value) + 1});
  if (const Value* found = find(key)) {
    const_cast<Value&>(*found) = std::move(value);  // an entry of this very dict
    return;
  }
  entries.emplace_back(std::move(key), std::move(value));
  if (entries.size() < kIndexedDict) return;
  if (entries.size() > kIndexedDict) {
    index.emplace(hash, entries.size() - 1);
    return;
  }
  for (size_t i = 0; i < entries.size(); ++i) index.emplace(hash_of(entries[i].first), i);
}

Integer Range::size() const {
  if (step > 0) return start < stop ? (stop - start + step - 1) / step : 0;
  return start > stop ? (start - stop - step - 1) / -step : 0;
}

Value* Namespace::find(std::string_view name) {
  for (auto& entry : entries) {
    if (entry.first == name) return &entry.second;
  }
  return nullptr;
}

std::optional<Value> Stream::pull() {
  if (start) items = std::exchange(start, nullptr)();
  while (next < items.size()) {
    Value item = std::move(items[next++]);
    if (!step || step(item)) return item;
  }
  return std::nullopt;
}

std::string Object::repr() const { return concat("<", type(), ">"); }

Value Object::call(Interpreter&, Arguments&) { fail("'", type(), "' object is not callable"); }

int depth_of(const Value& value) {
  if (value.is_sequence()) return value.as_sequence().depth;
  if (value.is_dict()) return value.as_dict().depth;
  if (const auto* stream = std::get_if<std::shared_ptr<Stream>>(&value.data)) {
    return (*stream)->depth;
  }
  if (const auto* view = std::get_if<std::shared_ptr<const View>>(&value.data)) {
    return (*view)->dict->depth + 1;
  }
  if (const auto* object = std::get_if<std::shared_ptr<Object>>(&value.data)) {
    return (*object)->depth;
  }
  return 0;
}

Value make_sequence(std::vector<Value> items, bool tuple, bool special) {
  auto sequence = std::make_shared<Sequence>();
  sequence->depth = checked_depth(deepest(items));
  sequence->weight = weight_of(items);
  sequence->items = std::move(items);
  sequence->tuple = tuple;
  return {Value::Data(SequencePtr(std::move(sequence))), special};
}

Value make_dict(std::shared_ptr<Dict> dict, bool special) {
  checked_depth(dict->depth - 1);
  return {Value::Data(DictPtr(std::move(dict))), special};
}

Value make_stream(std::vector<Value> items, bool special, const char* type) {
  auto stream = std::make_shared<Stream>();
  stream->depth = checked_depth(deepest(items));
  stream->items = std::move(items);
  stream->type = type;
  return {Value::Data(std::move(stream)), special};
}

Value make_stream(std::function<std::vector<Value>()> start,
                  std::function<bool(Value&)> step,
                  int depth,
                  bool special) {
  auto stream = std::make_shared<Stream>();
  stream->depth = checked_depth(depth);
  stream->start = std::move(start);
  stream->step = std::move(step);
  return {Value::Data(std::move(stream)), special};
}

Value make_object(std::shared_ptr<Object> object) {
  checked_depth(object->depth - 1);
  return {Value::Data(std::move(object)), true};
}

const char* type_name(const Value& value) { return std::visit(TypeName{}, value.data); }

std::string describe_type(const Value& value) {
  if (value.is_none()) return "None";
  return concat(type_name(value), " object");
}

bool truthy(const Value& value) { return std::visit(Truth{}, value.data); }

bool is_hashable(const Value& value) {
  if (!value.is_sequence()) {
    return !value.is_dict() && !value.is<std::shared_ptr<const View>>();
  }
  const Sequence& sequence = value.as_sequence();
  return sequence.tuple && sequence.weight <= kMaxKeyWeight &&
         std::all_of(sequence.items.begin(), sequence.items.end(), is_hashable);
}

size_t hash_of(const Value& value) {
  if (value.is_text()) return std::hash<std::string_view>{}(value.bytes());
  if (value.is_number()) {
    const double number = value.as_double();
    return std::hash<double>{}(number == 0 ? 0.0 : number);
  }
  if (value.is_none() || value.is_undefined()) return 0;
  if (value.is_sequence() && value.as_sequence().tuple) {
    require(value.as_sequence().weight <= kMaxKeyWeight, "a tuple with more than ", kMaxKeyWeight,
            " items cannot be a key");
    size_t hash = 1;
    for (const Value& item : value.as_sequence().items) hash = hash * 1000003 + hash_of(item);
    return hash;
  }
  if (const auto* object = std::get_if<std::shared_ptr<Object>>(&value.data)) {
    return std::hash<const void*>{}(object->get());
  }
  if (is_hashable(value)) return 2;  // by identity in Python; rare enough to share a slot
  fail("unhashable type: '", type_name(value), "'");
}

// Equality of what can be a key: scalars and tuples of them.
bool equal_scalars(const Value& a, const Value& b) {
  if (a.is_number() && b.is_number()) {
    if (a.is_integral() && b.is_integral()) return a.as_integer() == b.as_integer();
    return a.as_double() == b.as_double();
  }
  if (a.data.index() != b.data.index()) return false;
  if (a.is_text()) return a.bytes() == b.bytes();
  if (a.is_sequence()) {
    const auto& x = a.as_sequence();
    const auto& y = b.as_sequence();
    return x.tuple == y.tuple && std::equal(x.items.begin(), x.items.end(), y.items.begin(),
                                            y.items.end(), equal_scalars);
  }
  if (const auto* object = std::get_if<std::shared_ptr<Object>>(&a.data)) {
    return *object == std::get<std::shared_ptr<Object>>(b.data);
  }
  return a.is_none() || a.is_undefined();
}

void require_defined(const Value& value) {
  if (const auto* undefined = std::get_if<Undefined>(&value.data)) throw Error(*undefined->why);
}

std::string integer_text(Integer value) {
  if (value == 0) return "0";
  std::string digits;
  const bool negative = value < 0;
  while (value != 0) {
    const int digit = static_cast<int>(value % 10);
    digits += static_cast<char>('0' + (negative ? -digit : digit));
    value /= 10;
  }
  if (negative) digits += '-';
  return {digits.rbegin(), digits.rend()};
}

}  // namespace longspur::io::chat
