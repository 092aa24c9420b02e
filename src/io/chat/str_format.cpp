// str.format: replacement fields with paths, conversions and nested specifications.
#include <algorithm>

#include "io/chat/arguments.h"
#include "io/chat/format_spec.h"
#include "io/chat/methods.h"
#include "io/chat/numbers.h"
#include "io/chat/printf.h"

namespace longspur::io::chat {
namespace {

constexpr int kMaxNesting = 2;  // {:{width}}, as Python

class StrFormatter {
 public:
  StrFormatter(Interpreter& in, const Arguments& arguments) : in_(in), arguments_(arguments) {}

  Text run(const Text& format, int nesting) {
    require(nesting > 0, "Max string recursion exceeded");
    const std::string& bytes = format.bytes();
    Text out;
    for (size_t at = 0; at < bytes.size();) {
      const size_t brace = std::min(bytes.find_first_of("{}", at), bytes.size());
      out.append(format.substr(at, brace));
      if (brace == bytes.size()) break;
      if (brace + 1 < bytes.size() && bytes[brace + 1] == bytes[brace]) {
        out.append(format.substr(brace, brace + 1));
        at = brace + 2;
        continue;
      }
      require(bytes[brace] == '{', "Single '}' encountered in format string");
      const size_t end = field_end(bytes, brace + 1);
      const Text piece = field(format.substr(brace + 1, end), nesting);
      in_.budget().spend(1);
      in_.budget().allocate(static_cast<int64_t>(piece.size()));
      out.append(piece);
      at = end + 1;
    }
    return out;
  }

 private:
  static size_t field_end(const std::string& bytes, size_t at) {
    int open = 1;
    bool in_brackets = false;
    for (; at < bytes.size(); ++at) {
      if (bytes[at] == '[') in_brackets = true;
      if (bytes[at] == ']') in_brackets = false;
      if (in_brackets) continue;
      if (bytes[at] == '{') ++open;
      if (bytes[at] == '}' && --open == 0) return at;
    }
    fail("expected '}' before end of string");
  }

  Text field(const Text& content, int nesting) {
    const std::string& bytes = content.bytes();
    size_t name_end = 0;
    for (bool in_brackets = false; name_end < bytes.size(); ++name_end) {
      const char c = bytes[name_end];
      if (c == '[') in_brackets = true;
      if (c == ']') in_brackets = false;
      if (!in_brackets && (c == '!' || c == ':')) break;
    }
    Value value = lookup(bytes.substr(0, name_end));
    size_t at = name_end;
    if (at < bytes.size() && bytes[at] == '!') {
      require(at + 1 < bytes.size(), "end of string while looking for conversion specifier");
      value = convert(value, bytes[at + 1]);
      at += 2;
      require(at == bytes.size() || bytes[at] == ':', "expected ':' after conversion specifier");
    }
    Text spec;
    if (at < bytes.size()) spec = run(content.substr(at + 1, bytes.size()), nesting - 1);
    return format_value(in_.budget(), value, parse_format_spec(spec));
  }

  Value convert(const Value& value, char kind) {
    if (kind == 's') return Value::text(in_.str(value));
    if (kind == 'r') return Value::text(repr(in_.budget(), value));
    fail("unknown conversion specifier '", kind, "'");
  }

  Value lookup(std::string_view path) {
    const size_t first = std::min(path.find_first_of(".["), path.size());
    Value value = argument(path.substr(0, first));
    for (size_t at = first; at < path.size();) {
      if (path[at] == '.') {
        const size_t end = std::min(path.find_first_of(".[", at + 1), path.size());
        value = in_.attribute(value, path.substr(at + 1, end - at - 1));
        at = end;
      } else {
        const size_t close = path.find(']', at);
        require(path[at] == '[' && close != std::string_view::npos, "invalid field '", path, "'");
        value = in_.item(value, key(path.substr(at + 1, close - at - 1)));
        at = close + 1;
      }
    }
    return value;
  }

  static bool is_number(std::string_view text) {
    return !text.empty() && text.size() < 10 && text.find_first_not_of("0123456789") == text.npos;
  }

  static Value key(std::string_view text) {
    if (is_number(text)) return Value::integer(*parse_integer(text, 10));
    return Value::text(std::string(text), true);
  }

  const Value& argument(std::string_view name) {
    if (name.empty() || is_number(name)) {
      require(name.empty() ? !numbered_ : next_ == 0,
              "cannot switch between manual field specification and automatic field numbering");
      numbered_ = !name.empty();
      const auto index = static_cast<size_t>(name.empty() ? next_++ : *parse_integer(name, 10));
      require(index < arguments_.positional.size(), "Replacement index ", index,
              " out of range for positional args tuple");
      return arguments_.positional[index];
    }
    for (const auto& [key, value] : arguments_.named) {
      if (key == name) return value;
    }
    fail("KeyError: '", name, "'");
  }

  Interpreter& in_;
  const Arguments& arguments_;
  Integer next_ = 0;
  bool numbered_ = false;
};

}  // namespace

Value format_method(Interpreter& interpreter, const Value& self, Arguments& given) {
  interpreter.budget().allocate(static_cast<int64_t>(self.bytes().size()));
  return Value::text(StrFormatter(interpreter, given).run(self.as_text(), kMaxNesting));
}

Value format_map_method(Interpreter& interpreter, const Value& self, Arguments& given) {
  const Parameters p("format_map", given, {"mapping"}, 1);
  require(p.at(0).is_dict(), "format_map() expects a mapping");
  Arguments named;
  for (const auto& [key, value] : p.at(0).as_dict().entries) {
    if (key.is_text()) named.named.emplace_back(key.bytes(), value);
  }
  return format_method(interpreter, self, named);
}

}  // namespace longspur::io::chat
