// str and repr. Punctuation of a container has the container's origin, each string in it its own.
#include "io/chat/format.h"

#include <charconv>
#include <cmath>

#include "io/chat/unicode.h"

namespace longspur::io::chat {
namespace {

constexpr int kMinFixedExponent = -4, kMaxFixedExponent = 16;  // as Python's repr
constexpr int64_t kBytesPerStep = 64;

class Writer {
 public:
  Writer(Budget& budget, Text& out) : budget_(budget), out_(out) {}

  void repr(const Value& value) {
    budget_.spend(1);
    special_ = value.special;
    if (value.markup) put("Markup(");
    std::visit(*this, value.data);
    if (value.markup) put(")");
  }

  void operator()(const Undefined&) { put("Undefined"); }
  void operator()(const None&) { put("None"); }
  void operator()(bool value) { put(value ? "True" : "False"); }
  void operator()(Integer value) { put(integer_text(value)); }
  void operator()(double value) { put(real_text(value)); }
  void operator()(const TextPtr& text) { quoted(*text); }
  void operator()(const SequencePtr& sequence) {
    const bool special = special_;
    put(sequence->tuple ? "(" : "[");
    items(sequence->items, special);
    if (sequence->tuple && sequence->items.size() == 1) put(",");
    put(sequence->tuple ? ")" : "]");
  }
  void operator()(const DictPtr& dict) {
    const bool special = special_;
    put("{");
    bool first = true;
    for (const auto& [key, value] : dict->entries) {
      if (!first) put(", ");
      first = false;
      repr(key);
      special_ = special;
      put(": ");
      repr(value);
      special_ = special;
    }
    put("}");
  }
  void operator()(const std::shared_ptr<const Range>& range) {
    put(concat("range(", integer_text(range->start), ", ", integer_text(range->stop)));
    if (range->step != 1) put(", " + integer_text(range->step));
    put(")");
  }
  void operator()(const std::shared_ptr<const View>& view) {
    const bool special = special_;
    std::vector<Value> all;
    for (const auto& [key, value] : view->dict->entries) {
      if (view->kind == View::Kind::items) {
        all.push_back(make_sequence({key, value}, true, special));
      } else {
        all.push_back(view->kind == View::Kind::keys ? key : value);
      }
    }
    put(view->kind == View::Kind::items  ? "dict_items(["
        : view->kind == View::Kind::keys ? "dict_keys(["
                                         : "dict_values([");
    items(all, special);
    put("])");
  }
  void operator()(const std::shared_ptr<Stream>& stream) {
    put(concat("<", stream->type, " object>"));
  }
  void operator()(Namespace* space) {
    const bool special = special_;
    if (++namespaces_ > kMaxValueDepth) fail("namespaces contain each other");
    put("<Namespace {");
    bool first = true;
    for (const auto& [name, value] : space->entries) {
      put(first ? "'" : ", '");
      first = false;
      put(name);
      put("': ");
      repr(value);
      special_ = special;
    }
    put("}>");
    --namespaces_;
  }
  void operator()(const std::shared_ptr<Object>& object) { put(object->repr()); }

 private:
  void put(std::string_view bytes) {
    budget_.allocate(static_cast<int64_t>(bytes.size()));
    out_.append(bytes, special_);
  }

  void items(const std::vector<Value>& all, bool special) {
    for (size_t i = 0; i < all.size(); ++i) {
      if (i > 0) put(", ");
      repr(all[i]);
      special_ = special;
    }
  }

  void quoted(const Text& text) {
    const bool special = special_;
    const bool has_single = text.bytes().find('\'') != std::string::npos;
    const char quote = has_single && text.bytes().find('"') == std::string::npos ? '"' : '\'';
    put({&quote, 1});
    budget_.spend(static_cast<int64_t>(text.size()) / kBytesPerStep);
    text.for_each_run([&](std::string_view run, bool origin) {
      special_ = origin;
      put(escaped(run, quote));
    });
    special_ = special;
    put({&quote, 1});
  }

  static std::string escaped(std::string_view run, char quote) {
    std::string out;
    for (size_t at = 0, length = 0; at < run.size(); at += length) {
      const char32_t code = decode_at(run, at, &length);
      if (code == '\\' || code == static_cast<char32_t>(quote)) {
        out += '\\';
        out += static_cast<char>(code);
      } else if (code == '\n' || code == '\r' || code == '\t') {
        out += code == '\n' ? "\\n" : code == '\r' ? "\\r" : "\\t";
      } else if (is_printable(code)) {
        out += run.substr(at, length);
      } else {
        hexadecimal(out, code);
      }
    }
    return out;
  }

  static void hexadecimal(std::string& out, char32_t code) {
    static constexpr char kHex[] = "0123456789abcdef";
    const int digits = code < 0x100 ? 2 : code < 0x10000 ? 4 : 8;
    out += code < 0x100 ? "\\x" : code < 0x10000 ? "\\u" : "\\U";
    for (int i = digits - 1; i >= 0; --i) out += kHex[(code >> (4 * i)) & 15];
  }

  Budget& budget_;
  Text& out_;
  bool special_ = true;
  int namespaces_ = 0;
};

}  // namespace

std::string real_text(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value > 0 ? "inf" : "-inf";
  char buffer[32];
  const auto end =
      std::to_chars(buffer, buffer + sizeof(buffer), value, std::chars_format::scientific);
  const std::string_view shown(buffer, static_cast<size_t>(end.ptr - buffer));
  const size_t e = shown.find('e');
  const bool negative = shown[0] == '-';
  std::string digits(1, shown[negative ? 1 : 0]);
  if (const size_t point = shown.find('.'); point != std::string_view::npos) {
    digits += shown.substr(point + 1, e - point - 1);
  }
  int exponent = 0;
  const size_t sign = shown[e + 1] == '+' ? 2 : 1;
  std::from_chars(shown.data() + e + sign, shown.data() + shown.size(), exponent);
  std::string out = negative ? "-" : "";
  if (exponent < kMinFixedExponent || exponent >= kMaxFixedExponent) {
    out += digits[0];
    if (digits.size() > 1) out.append(1, '.').append(digits, 1);
    const int magnitude = std::abs(exponent);
    return concat(out, exponent < 0 ? "e-" : "e+", magnitude < 10 ? "0" : "", magnitude);
  }
  if (exponent < 0) {
    return out.append("0.").append(static_cast<size_t>(-exponent - 1), '0').append(digits);
  }
  const auto whole = static_cast<size_t>(exponent) + 1;
  if (digits.size() <= whole) {
    return out.append(digits).append(whole - digits.size(), '0').append(".0");
  }
  return out.append(digits, 0, whole).append(1, '.').append(digits, whole);
}

Text repr(Budget& budget, const Value& value) {
  Text out;
  Writer(budget, out).repr(value);
  return out;
}

Text to_text(Budget& budget, const Value& value) {
  if (value.is_text()) {
    budget.allocate(static_cast<int64_t>(value.bytes().size()));
    return value.as_text();
  }
  if (value.is_undefined()) return {};
  return repr(budget, value);
}

}  // namespace longspur::io::chat
