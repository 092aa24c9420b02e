// Numbers are written without their sign first, then grouped, signed and padded.
#include "io/chat/format_spec.h"

#include <algorithm>
#include <charconv>
#include <cmath>

#include "io/chat/format.h"
#include "io/chat/text_ops.h"

namespace longspur::io::chat {
namespace {

constexpr std::string_view kRealTypes = "eEfFgG%";

std::string upper(std::string text) {
  for (char& c : text) {
    if (c >= 'a' && c <= 'z') c = static_cast<char>(c - 'a' + 'A');
  }
  return text;
}

std::string in_base(Integer value, int base) {
  static constexpr char kDigits[] = "0123456789abcdef";
  std::string out;
  do {
    const int digit = static_cast<int>(value % base);
    out += kDigits[digit < 0 ? -digit : digit];
    value /= base;
  } while (value != 0);
  return {out.rbegin(), out.rend()};
}

std::string to_chars(double value, std::chars_format format, int precision) {
  std::string out(static_cast<size_t>(precision) + 400, '\0');
  const auto end = std::to_chars(out.data(), out.data() + out.size(), value, format, precision);
  out.resize(static_cast<size_t>(end.ptr - out.data()));
  return out;
}

// Neither a sign nor padding; value is not negative.
std::string real_digits(double value, const FormatSpec& spec) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return "inf";
  const int precision = spec.precision < 0 ? 6 : spec.precision;
  switch (spec.type) {
    case 'e':
    case 'E':
      return to_chars(value, std::chars_format::scientific, precision);
    case 'f':
    case 'F':
      return to_chars(value, std::chars_format::fixed, precision);
    case '%':
      return to_chars(value * 100, std::chars_format::fixed, precision) + "%";
    case 'g':
    case 'G':
    case 'n':
      return to_chars(value, std::chars_format::general, std::max(precision, 1));
    default:
      break;
  }
  if (spec.precision < 0) return real_text(value);
  // As g, but it always shows a decimal point, and turns to exponents one digit earlier.
  const int digits = std::max(spec.precision, 1);
  std::string out = to_chars(value, std::chars_format::general, digits);
  if (out.find_first_of(".e") != std::string::npos) return out;
  if (static_cast<int>(out.size()) >= digits && value != 0 &&
      digits == static_cast<int>(out.size())) {
    std::string scientific = to_chars(value, std::chars_format::scientific, digits - 1);
    const size_t e = scientific.find('e');
    size_t end = e;
    if (scientific.find('.') < e) {
      while (scientific[end - 1] == '0') --end;
      if (scientific[end - 1] == '.') --end;
    }
    return scientific.substr(0, end) + scientific.substr(e);
  }
  return out + ".0";
}

std::string integer_digits(Integer value, const FormatSpec& spec) {
  switch (spec.type) {
    case 'b':
      return in_base(value, 2);
    case 'o':
      return in_base(value, 8);
    case 'x':
      return in_base(value, 16);
    case 'X':
      return upper(in_base(value, 16));
    default:
      return in_base(value, 10);
  }
}

void group(std::string& digits, const FormatSpec& spec) {
  if (spec.grouping == '\0') return;
  const size_t end = std::min(digits.find_first_not_of("0123456789abcdefABCDEF"), digits.size());
  const size_t whole = std::min(end, digits.find('e'));
  const size_t step =
      std::string_view("boxX").find(spec.type) != std::string_view::npos && spec.type != '\0' ? 4
                                                                                              : 3;
  for (size_t at = whole; at > step; at -= step) {
    digits.insert(at - step, 1, spec.grouping);
  }
}

Text pad_field(
    Budget& budget, const Text& prefix, const Text& body, const FormatSpec& spec, char align) {
  const auto width = static_cast<int64_t>(spec.width);
  if (align == '=') {
    Text out = prefix;
    out.append(
        pad(budget, body, width - static_cast<int64_t>(prefix.size()), spec.fill, Side::left));
    return out;
  }
  Text all = prefix;
  all.append(body);
  if (align == '^') {
    const auto missing = width - static_cast<int64_t>(count_code_points(all.bytes()));
    const int64_t left = std::max<int64_t>(missing, 0) / 2;
    all = pad(budget, all, width - (std::max<int64_t>(missing, 0) - left), spec.fill, Side::left);
    return pad(budget, all, width, spec.fill, Side::right);
  }
  return pad(budget, all, width, spec.fill, align == '<' ? Side::right : Side::left);
}

Text number(Budget& budget, const Value& value, const FormatSpec& spec) {
  const bool real = value.is<double>() ||
                    (spec.type != '\0' && kRealTypes.find(spec.type) != std::string_view::npos);
  bool negative;
  std::string digits, prefix;
  if (real) {
    const double magnitude = value.as_double();
    negative = std::signbit(magnitude) && !std::isnan(magnitude);
    digits = real_digits(std::fabs(magnitude), spec);
    if (spec.type == 'E' || spec.type == 'F' || spec.type == 'G') digits = upper(digits);
  } else {
    require(spec.precision < 0, "precision not allowed in integer format specifier");
    negative = value.as_integer() < 0;
    digits = integer_digits(value.as_integer(), spec);
    if (spec.alternate && spec.type != '\0' &&
        std::string_view("boxX").find(spec.type) != std::string_view::npos) {
      prefix.append(1, '0').append(1, spec.type);
    }
  }
  group(digits, spec);
  if (negative) {
    prefix.insert(prefix.begin(), '-');
  } else if (spec.sign != '-') {
    prefix.insert(prefix.begin(), spec.sign);
  }
  return pad_field(budget, Text(prefix, value.special), Text(digits, value.special), spec,
                   spec.align == '\0' ? '>' : spec.align);
}

bool is_align(char c) { return c == '<' || c == '>' || c == '=' || c == '^'; }

int parse_size(std::string_view bytes, size_t& at) {
  int size = -1;
  for (; at < bytes.size() && bytes[at] >= '0' && bytes[at] <= '9'; ++at) {
    size = std::max(size, 0) * 10 + (bytes[at] - '0');
    require(size <= kMaxFieldSize, "format: found a field wider than ", kMaxFieldSize);
  }
  return size;
}

}  // namespace

FormatSpec parse_format_spec(const Text& spec) {
  FormatSpec out;
  const std::string_view bytes = spec.bytes();
  const auto peek = [&](size_t i) { return i < bytes.size() ? bytes[i] : '\0'; };
  size_t at = 0, first = 0;
  if (!bytes.empty()) decode_at(bytes, 0, &first);
  if (is_align(peek(first)) && first > 0) {
    out.fill = spec.substr(0, first);
    out.align = bytes[first];
    at = first + 1;
  } else if (is_align(peek(0))) {
    out.align = bytes[0];
    at = 1;
  }
  if (peek(at) == '+' || peek(at) == '-' || peek(at) == ' ') out.sign = bytes[at++];
  if (peek(at) == '#') {
    out.alternate = true;
    ++at;
  }
  if (peek(at) == '0') {
    if (out.align == '\0') {
      out.fill = Text("0", true);
      out.align = '=';
    }
    ++at;
  }
  out.width = std::max(0, parse_size(bytes, at));
  if (peek(at) == ',' || peek(at) == '_') out.grouping = bytes[at++];
  if (peek(at) == '.') {
    ++at;
    out.precision = parse_size(bytes, at);
    require(out.precision >= 0, "format specifier missing precision");
  }
  if (at < bytes.size()) out.type = bytes[at++];
  require(at == bytes.size(), "invalid format specifier '", bytes, "'");
  return out;
}

Text format_text(Budget& budget, const Text& text, const FormatSpec& spec) {
  require(spec.type == '\0' || spec.type == 's', "unknown format code '", spec.type,
          "' for object of type 'str'");
  require(spec.align != '=' || spec.fill.bytes() == "0",
          "'=' alignment not allowed in string format specifier");
  Text body = text;
  if (spec.precision >= 0) {
    body = text.substr(0, offset_of(text.bytes(), static_cast<size_t>(spec.precision)));
  }
  return pad_field(budget, Text(), body, spec,
                   spec.align == '\0' || spec.align == '=' ? '<' : spec.align);
}

Text format_value(Budget& budget, const Value& value, const FormatSpec& spec) {
  if (value.is_text()) return format_text(budget, value.as_text(), spec);
  const bool plain = spec.type == '\0' && spec.precision < 0 && spec.width == 0 &&
                     spec.align == '\0' && spec.sign == '-' && spec.grouping == '\0';
  if (!value.is_number() || (value.is_bool() && plain)) {
    if (value.is_undefined()) require_defined(value);
    require(plain, "unsupported format string passed to ", type_name(value), ".__format__");
    return to_text(budget, value);
  }
  if (spec.type == 'c') {
    require(value.is_integral(), "unknown format code 'c' for object of type 'float'");
    const Integer code = value.as_integer();
    require(code >= 0 && code <= 0x10FFFF, "%c arg not in range(0x110000)");
    std::string bytes;
    append_utf8(bytes, static_cast<char32_t>(code));
    return pad_field(budget, Text(), Text(bytes, value.special), spec,
                     spec.align == '\0' ? '<' : spec.align);
  }
  static constexpr std::string_view kIntegerTypes = "bdoxXn";
  const bool known =
      spec.type == '\0' || kRealTypes.find(spec.type) != std::string_view::npos ||
      spec.type == 'n' ||
      (value.is_integral() && kIntegerTypes.find(spec.type) != std::string_view::npos);
  require(known, "unknown format code '", spec.type, "' for object of type '", type_name(value),
          "'");
  return number(budget, value, spec);
}

}  // namespace longspur::io::chat
