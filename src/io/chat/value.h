// The values of the template language: Python's, as far as templates can see them. All are
// immutable but namespaces, one-shot iterators and loop state, which is what jinja2's immutable
// sandbox leaves. Containers count their depth, so that nothing recurses without bound.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <variant>
#include <vector>

#include "base/error.h"
#include "io/chat/text.h"

namespace longspur::io::chat {

// Python's integers are unbounded; 128 bits hold every JSON integer and leave room for arithmetic.
__extension__ typedef __int128 Integer;

inline constexpr int kMaxValueDepth = 200;  // nested containers

class Value;
class Interpreter;
struct Sequence;
struct Dict;
struct Range;
struct View;
struct Stream;
struct Namespace;
struct Object;

struct Undefined {
  std::shared_ptr<const std::string> why;  // the message of an operation that needs a value
};
struct None {};

using TextPtr = std::shared_ptr<const Text>;
using SequencePtr = std::shared_ptr<const Sequence>;
using DictPtr = std::shared_ptr<const Dict>;

class Value {
 public:
  using Data = std::variant<Undefined,
                            None,
                            bool,
                            Integer,
                            double,
                            TextPtr,
                            SequencePtr,
                            DictPtr,
                            std::shared_ptr<const Range>,
                            std::shared_ptr<const View>,
                            std::shared_ptr<Stream>,
                            Namespace*,
                            std::shared_ptr<Object>>;

  Value() : data(None{}) {}
  Value(Data contents, bool from_template) : data(std::move(contents)), special(from_template) {}

  static Value undefined(std::string why);
  static Value text(Text text, bool markup = false);
  static Value text(std::string bytes, bool special) {
    return text(Text(std::move(bytes), special));
  }
  static Value boolean(bool value, bool special = true) { return {Data(value), special}; }
  static Value integer(Integer value, bool special = true) { return {Data(value), special}; }
  static Value real(double value, bool special = true) { return {Data(value), special}; }

  template <class T>
  bool is() const {
    return std::holds_alternative<T>(data);
  }
  bool is_undefined() const { return is<Undefined>(); }
  bool is_none() const { return is<None>(); }
  bool is_bool() const { return is<bool>(); }
  bool is_text() const { return is<TextPtr>(); }
  bool is_sequence() const { return is<SequencePtr>(); }
  bool is_dict() const { return is<DictPtr>(); }
  bool is_number() const { return is_bool() || is<Integer>() || is<double>(); }
  bool is_integral() const { return is_bool() || is<Integer>(); }

  const Text& as_text() const { return *std::get<TextPtr>(data); }
  const std::string& bytes() const { return as_text().bytes(); }
  const Sequence& as_sequence() const { return *std::get<SequencePtr>(data); }
  const Dict& as_dict() const { return *std::get<DictPtr>(data); }
  Integer as_integer() const;  // of a bool or an integer
  double as_double() const;    // of any number

  Data data;
  bool special = true;  // where what is printed for it comes from; strings know better themselves
  bool markup = false;  // of a string: went through |safe or |escape
};

// A list or a tuple.
struct Sequence {
  std::vector<Value> items;
  bool tuple = false;
  bool group = false;  // a tuple of groupby: .grouper and .list
  int depth = 1;
  size_t weight = 1;  // items, those of nested sequences included, up to a cap
};

// Insertion order, as Python's dict.
struct Dict {
  std::vector<std::pair<Value, Value>> entries;
  std::unordered_multimap<size_t, size_t> index;  // hash -> entry, only when there are many
  int depth = 1;

  const Value* find(const Value& key) const;
  const Value* find(std::string_view key) const;
  void set(Value key, Value value);  // while it is being built
};

struct Range {
  Integer start = 0, stop = 0, step = 1;
  Integer size() const;
  Integer at(Integer index) const { return start + index * step; }
};

// dict.keys(), dict.values(), dict.items().
struct View {
  enum class Kind { keys, values, items };
  Kind kind;
  DictPtr dict;
  bool special;
};

// What Python calls a generator or an iterator: every item once, worked out when it is asked for.
struct Stream {
  std::function<std::vector<Value>()> start;  // makes `items` before the first pull
  std::function<bool(Value&)> step;           // changes an item, or drops it (false)
  std::vector<Value> items;
  const char* type = "generator";
  size_t next = 0;
  int depth = 1;

  std::optional<Value> pull();
};

// namespace(): the one thing that templates may change. The interpreter owns it.
struct Namespace {
  std::vector<std::pair<std::string, Value>> entries;
  Value* find(std::string_view name);
};

struct Arguments {
  std::vector<Value> positional;
  std::vector<std::pair<std::string, Value>> named;
};

// Things with behaviour: functions, macros, bound methods, loops, cyclers.
struct Object {
  virtual ~Object() = default;
  virtual const char* type() const { return "function"; }
  virtual std::string repr() const;
  virtual bool callable() const { return true; }
  virtual Value call(Interpreter& interpreter, Arguments& arguments);
  // False when there is no such attribute.
  virtual bool attribute(Interpreter&, std::string_view, Value*) { return false; }
  int depth = 1;
};

template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  throw Error(concat(parts...));
}

Value make_sequence(std::vector<Value> items, bool tuple, bool special);
Value make_dict(std::shared_ptr<Dict> dict, bool special);
// An iterator over items at hand, or over what `start` makes, which holds values this deep.
Value make_stream(std::vector<Value> items, bool special, const char* type = "generator");
Value make_stream(std::function<std::vector<Value>()> start,
                  std::function<bool(Value&)> step,
                  int depth,
                  bool special);
Value make_object(std::shared_ptr<Object> object);
int depth_of(const Value& value);

const char* type_name(const Value& value);      // as Python's type(x).__name__
std::string describe_type(const Value& value);  // as jinja2 names it in messages: "dict object"
bool truthy(const Value& value);
bool is_hashable(const Value& value);
size_t hash_of(const Value& value);  // fails for what Python cannot hash
bool equal_scalars(const Value& a, const Value& b);
void require_defined(const Value& value);
std::string integer_text(Integer value);

}  // namespace longspur::io::chat
