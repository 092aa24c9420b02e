// json.dumps: the separators, escapes and number formats of Python's encoder.
#include <algorithm>
#include <cmath>

#include "io/chat/format.h"
#include "io/chat/operators.h"

namespace longspur::io::chat {
namespace {

constexpr int64_t kBytesPerStep = 64;

class JsonWriter {
 public:
  JsonWriter(Budget& budget, const JsonStyle& style, Text& out)
      : budget_(budget), style_(style), out_(out) {
    item_separator_ = style.item_separator.value_or(style.indent ? "," : ", ");
    key_separator_ = style.key_separator.value_or(": ");
  }

  void write(const Value& value) {
    budget_.spend(1);
    const bool outer = special_;
    special_ = value.special;
    if (value.is_none()) {
      put("null");
    } else if (value.is_text()) {
      string(value.as_text());
    } else if (value.is_number()) {
      put(number(value));
    } else if (value.is_sequence()) {
      sequence(value.as_sequence().items);
    } else if (value.is_dict()) {
      dict(value.as_dict());
    } else {
      fail("Object of type ", type_name(value), " is not JSON serializable");
    }
    special_ = outer;
  }

 private:
  void put(std::string_view bytes) {
    budget_.allocate(static_cast<int64_t>(bytes.size()));
    out_.append(bytes, special_);
  }

  static std::string number(const Value& value) {
    if (value.is_bool()) return truthy(value) ? "true" : "false";
    if (value.is_integral()) return integer_text(value.as_integer());
    const double real = value.as_double();
    if (std::isnan(real)) return "NaN";
    if (std::isinf(real)) return real > 0 ? "Infinity" : "-Infinity";
    return real_text(real);
  }

  void new_line() {
    if (!style_.indent) return;
    put("\n");
    for (int i = 0; i < level_; ++i) put(*style_.indent);
  }

  void sequence(const std::vector<Value>& items) {
    if (items.empty()) {
      put("[]");
      return;
    }
    put("[");
    ++level_;
    for (size_t i = 0; i < items.size(); ++i) {
      if (i > 0) put(item_separator_);
      new_line();
      write(items[i]);
    }
    --level_;
    new_line();
    put("]");
  }

  void dict(const Dict& dict) {
    if (dict.entries.empty()) {
      put("{}");
      return;
    }
    std::vector<const std::pair<Value, Value>*> entries;
    for (const auto& entry : dict.entries) entries.push_back(&entry);
    if (style_.sort_keys) {
      std::stable_sort(entries.begin(), entries.end(), [this](const auto* a, const auto* b) {
        return less(budget_, a->first, b->first);
      });
    }
    put("{");
    ++level_;
    for (size_t i = 0; i < entries.size(); ++i) {
      if (i > 0) put(item_separator_);
      new_line();
      key(entries[i]->first);
      put(key_separator_);
      write(entries[i]->second);
    }
    --level_;
    new_line();
    put("}");
  }

  void key(const Value& key) {
    if (key.is_text()) {
      string(key.as_text());
    } else if (key.is_none()) {
      put("\"null\"");
    } else if (key.is_number()) {
      put("\"");
      put(number(key));
      put("\"");
    } else {
      fail("keys must be str, int, float, bool or None, not ", type_name(key));
    }
  }

  void string(const Text& text) {
    const bool outer = special_;
    put("\"");
    budget_.spend(static_cast<int64_t>(text.size()) / kBytesPerStep);
    text.for_each_run([this](std::string_view run, bool origin) {
      special_ = origin;
      put(escaped(run));
    });
    special_ = outer;
    put("\"");
  }

  std::string escaped(std::string_view run) const {
    static constexpr std::string_view kCodes = "\"\\\n\r\t\f\b";
    static constexpr std::string_view kNames = "\"\\nrtfb";
    std::string out;
    out.reserve(run.size());
    for (size_t at = 0, length = 0; at < run.size(); at += length) {
      const auto byte = static_cast<unsigned char>(run[at]);
      length = 1;
      if (const size_t known = kCodes.find(run[at]); known != std::string_view::npos) {
        out += '\\';
        out += kNames[known];
      } else if (byte < 0x20) {
        unit(out, byte);
      } else if (byte < 0x80 || !style_.ensure_ascii) {
        out += run[at];
      } else {
        const char32_t code = decode_at(run, at, &length);
        if (code >= 0x10000) {
          unit(out, 0xD800 + ((code - 0x10000) >> 10));
          unit(out, 0xDC00 + ((code - 0x10000) & 0x3FF));
        } else {
          unit(out, code);
        }
      }
    }
    return out;
  }

  static void unit(std::string& out, char32_t code) {
    static constexpr char kHex[] = "0123456789abcdef";
    out += "\\u";
    for (int shift = 12; shift >= 0; shift -= 4) out += kHex[(code >> shift) & 15];
  }

  Budget& budget_;
  const JsonStyle& style_;
  Text& out_;
  std::string item_separator_, key_separator_;
  bool special_ = true;
  int level_ = 0;
};

}  // namespace

Text to_json(Budget& budget, const Value& value, const JsonStyle& style) {
  Text out;
  JsonWriter(budget, style, out).write(value);
  return out;
}

}  // namespace longspur::io::chat
