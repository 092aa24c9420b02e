// The % operator of str, and escaping for HTML.
#include "io/chat/printf.h"

#include <algorithm>
#include <cmath>

#include "io/chat/format.h"
#include "io/chat/format_spec.h"

namespace longspur::io::chat {
namespace {

// What Python lets pass without a field that takes it.
bool is_mapping(const Value& value) {
  return value.is_dict() || value.is_sequence() || value.is_undefined() ||
         value.is<std::shared_ptr<const Range>>();
}

class PercentFormatter {
 public:
  PercentFormatter(Budget& budget, const Value& format, const Value& arguments)
      : budget_(budget), format_(format), text_(format.as_text()), arguments_(arguments) {
    if (arguments.is_sequence() && arguments.as_sequence().tuple) {
      items_ = &arguments.as_sequence().items;
    }
  }

  Text run() {
    const std::string& bytes = text_.bytes();
    Text out;
    while (at_ < bytes.size()) {
      const size_t percent = std::min(bytes.find('%', at_), bytes.size());
      out.append(text_.substr(at_, percent));
      at_ = percent;
      if (at_ == bytes.size()) break;
      ++at_;
      const Text piece = field();
      budget_.spend(1);
      budget_.allocate(static_cast<int64_t>(piece.size()));
      out.append(piece);
    }
    const bool all_used = items_ != nullptr ? used_ == items_->size()
                                            : used_ > 0 || mapped_ || is_mapping(arguments_);
    require(all_used, "not all arguments converted during string formatting");
    return out;
  }

 private:
  char peek() const {
    require(at_ < text_.size(), "incomplete format");
    return text_.bytes()[at_];
  }

  const Value& next() {
    if (items_ == nullptr) {
      require(used_++ == 0, "not enough arguments for format string");
      return arguments_;
    }
    require(used_ < items_->size(), "not enough arguments for format string");
    return (*items_)[used_++];
  }

  const Value& mapped() {
    require(arguments_.is_dict(), "format requires a mapping");
    const size_t close = text_.bytes().find(')', at_);
    require(close != std::string::npos, "incomplete format key");
    const std::string key = text_.bytes().substr(at_ + 1, close - at_ - 1);
    at_ = close + 1;
    mapped_ = true;
    const Value* found = arguments_.as_dict().find(key);
    require(found != nullptr, "KeyError: '", key, "'");
    return *found;
  }

  int size() {
    if (peek() == '*') {
      ++at_;
      const Value& value = next();
      require(value.is_integral(), "* wants int");
      const Integer given = value.as_integer();
      require(given >= -kMaxFieldSize && given <= kMaxFieldSize,
              "format: found a field wider than ", kMaxFieldSize);
      return static_cast<int>(given);
    }
    int value = 0;
    for (; peek() >= '0' && peek() <= '9'; ++at_) {
      value = value * 10 + (peek() - '0');
      require(value <= kMaxFieldSize, "format: found a field wider than ", kMaxFieldSize);
    }
    return value;
  }

  Text field() {
    const Value* value = peek() == '(' ? &mapped() : nullptr;
    FormatSpec spec;
    bool left = false, zero = false;
    for (; std::string_view("-+ #0").find(peek()) != std::string_view::npos; ++at_) {
      left = left || peek() == '-';
      zero = zero || peek() == '0';
      spec.alternate = spec.alternate || peek() == '#';
      if (peek() == '+' || (peek() == ' ' && spec.sign == '-')) spec.sign = peek();
    }
    spec.width = size();
    if (spec.width < 0) {
      left = true;
      spec.width = -spec.width;
    }
    if (peek() == '.') {
      ++at_;
      spec.precision = std::max(0, size());
    }
    while (peek() == 'h' || peek() == 'l' || peek() == 'L') ++at_;
    const char type = text_.bytes()[at_++];
    if (type == '%') return Text("%", text_.special_at(at_ - 1));
    spec.align = left ? '<' : '>';
    return converted(type, value != nullptr ? *value : next(), spec, zero && !left);
  }

  Text converted(char type, const Value& value, FormatSpec spec, bool zero) {
    switch (type) {
      case 's':
      case 'r':
      case 'a': {
        Text text = type == 's' ? to_text(budget_, value) : repr(budget_, value);
        if (format_.markup && !value.markup) text = escape_html(text);
        return format_text(budget_, text, spec);
      }
      case 'c':
        if (value.is_text()) {
          require(count_code_points(value.bytes()) == 1, "%c requires int or char");
          return format_text(budget_, value.as_text(), spec);
        }
        break;
      case 'd':
      case 'i':
      case 'u':
      case 'x':
      case 'X':
      case 'o':
      case 'e':
      case 'E':
      case 'f':
      case 'F':
      case 'g':
      case 'G':
        break;
      default:
        fail("unsupported format character '", type, "'");
    }
    return number(type, value, spec, zero);
  }

  Text number(char type, const Value& value, FormatSpec spec, bool zero) {
    require_defined(value);
    if (!value.is_number()) {
      fail("%", type, " format: a real number is required, not ", type_name(value));
    }
    spec.type = type == 'i' || type == 'u' ? 'd' : type;
    Value shown = value.is_bool() ? Value::integer(value.as_integer(), value.special) : value;
    if (std::string_view("dxXoc").find(spec.type) != std::string_view::npos && shown.is<double>()) {
      require(spec.type == 'd', "%", type, " format: an integer is required, not float");
      const double real = shown.as_double();
      require(std::fabs(real) < 1e38, "cannot convert the float to an integer");
      shown = Value::integer(static_cast<Integer>(real), value.special);
    }
    if (zero && spec.type != 'c') {
      spec.fill = Text("0", true);
      spec.align = '=';
    }
    if (std::string_view("dxXo").find(spec.type) != std::string_view::npos && spec.precision >= 0) {
      // The precision of an integer is its least number of digits.
      FormatSpec digits = spec;
      digits.width = spec.precision + (shown.as_integer() < 0 || spec.sign != '-' ? 1 : 0) +
                     (spec.alternate && spec.type != 'd' ? 2 : 0);
      digits.precision = -1;
      digits.fill = Text("0", true);
      digits.align = '=';
      FormatSpec outer;
      outer.width = spec.width;
      outer.align = spec.align == '=' ? '>' : spec.align;
      return format_text(budget_, format_value(budget_, shown, digits), outer);
    }
    return format_value(budget_, shown, spec);
  }

  Budget& budget_;
  const Value& format_;
  const Text& text_;
  const Value& arguments_;
  const std::vector<Value>* items_ = nullptr;
  size_t at_ = 0, used_ = 0;
  bool mapped_ = false;
};

}  // namespace

Value percent_format(Budget& budget, const Value& format, const Value& arguments) {
  budget.allocate(static_cast<int64_t>(format.bytes().size()));
  return Value::text(PercentFormatter(budget, format, arguments).run(), format.markup);
}

Text escape_html(const Text& text) {
  static constexpr std::string_view kCharacters = "&<>'\"";
  static constexpr std::string_view kNames[] = {"&amp;", "&lt;", "&gt;", "&#39;", "&#34;"};
  Text out;
  text.for_each_run([&out](std::string_view run, bool special) {
    size_t begin = 0;
    for (size_t at = run.find_first_of(kCharacters); at != std::string_view::npos;
         at = run.find_first_of(kCharacters, begin)) {
      out.append(run.substr(begin, at - begin), special);
      out.append(kNames[kCharacters.find(run[at])], special);
      begin = at + 1;
    }
    out.append(run.substr(begin), special);
  });
  return out;
}

Value add_markup(const Value& left, const Value& right) {
  Text out = left.markup ? left.as_text() : escape_html(left.as_text());
  out.append(right.markup ? right.as_text() : escape_html(right.as_text()));
  return Value::text(std::move(out), true);
}

}  // namespace longspur::io::chat
