// Filters on numbers.
#include <algorithm>
#include <charconv>
#include <cmath>

#include "io/chat/arguments.h"
#include "io/chat/filters.h"
#include "io/chat/numbers.h"
#include "io/chat/objects.h"

namespace longspur::io::chat {
namespace {

constexpr double kLargestInteger = 1.7e38;  // of 128 bits

std::optional<Integer> truncated(double value) {
  if (std::isnan(value) || std::isinf(value)) return std::nullopt;
  require(std::fabs(value) < kLargestInteger, "an integer of the template is too large");
  return static_cast<Integer>(value);
}

Value int_filter(Interpreter&, const Value& value, Arguments& given) {
  const Parameters p("int", given, {"default", "base"});
  require_defined(value);
  const Integer base = p.integer(1, 10);
  require(base == 0 || (base >= 2 && base <= 36), "int: found base ", integer_text(base),
          ", expected 0 or 2 to 36");
  std::optional<Integer> result;
  const bool special = value.is_text() ? value.as_text().all_special() : value.special;
  if (value.is_text()) {
    result = parse_integer(value.bytes(), static_cast<int>(base));
    if (!result) {
      const auto real = parse_real(value.bytes());
      if (real) result = truncated(*real);
    }
  } else if (value.is_integral()) {
    result = value.as_integer();
  } else if (value.is<double>()) {
    require(!std::isinf(value.as_double()), "cannot convert float infinity to integer");
    result = truncated(value.as_double());
  }
  return result ? Value::integer(*result, special) : p.or_else(0, Value::integer(0));
}

Value float_filter(Interpreter&, const Value& value, Arguments& given) {
  const Parameters p("float", given, {"default"});
  require_defined(value);
  if (value.is_number()) return Value::real(value.as_double(), value.special);
  if (value.is_text()) {
    if (const auto real = parse_real(value.bytes())) {
      return Value::real(*real, value.as_text().all_special());
    }
  }
  return p.or_else(0, Value::real(0));
}

Value abs_filter(Interpreter&, const Value& value, Arguments& given) {
  const Parameters p("abs", given, {});
  require_defined(value);
  if (value.is<double>()) return Value::real(std::fabs(value.as_double()), value.special);
  if (!value.is_integral()) fail("bad operand type for abs(): '", type_name(value), "'");
  return value.as_integer() < 0 ? negate(value, true) : negate(value, false);
}

// Correctly rounded decimal digits, half to even, as Python's round.
double round_decimal(double value, int digits) {
  if (digits > 308) return value;
  if (digits < -308) return std::copysign(0.0, value);
  if (digits < 0) {
    const double unit = std::pow(10.0, -digits);
    const double scaled = value / unit;
    double rounded = std::nearbyint(scaled);
    if (std::fabs(scaled - std::trunc(scaled)) == 0.5) rounded = 2 * std::round(scaled / 2);
    return rounded * unit;
  }
  char buffer[700];
  const auto end =
      std::to_chars(buffer, buffer + sizeof(buffer), value, std::chars_format::fixed, digits);
  double rounded = value;
  if (end.ec == std::errc()) std::from_chars(buffer, end.ptr, rounded);
  return rounded;
}

Integer round_integer(Integer value, Integer digits) {
  if (digits >= 0) return value;
  if (digits < -37) return 0;
  Integer unit = 1;
  for (Integer i = digits; i < 0; ++i) unit *= 10;
  Integer quotient = value / unit;
  const Integer rest = value % unit;
  const Integer twice = rest < 0 ? -2 * (rest / 1) : 2 * rest;
  const Integer direction = value < 0 ? -1 : 1;
  if (twice > unit || (twice == unit && quotient % 2 != 0)) quotient += direction;
  return quotient * unit;
}

Value round_filter(Interpreter&, const Value& value, Arguments& given) {
  const Parameters p("round", given, {"precision", "method"});
  require_defined(value);
  const std::string method = p.has(1) ? p.text(1).bytes() : "common";
  require(method == "common" || method == "ceil" || method == "floor", "round: found method '",
          method, "', expected common, ceil or floor");
  if (!value.is_number()) fail("type ", type_name(value), " doesn't define __round__ method");
  const auto digits = static_cast<int>(std::clamp<Integer>(p.integer(0, 0), -1000, 1000));
  if (method == "common") {
    if (value.is_integral()) {
      return Value::integer(round_integer(value.as_integer(), digits), value.special);
    }
    return Value::real(round_decimal(value.as_double(), digits), value.special);
  }
  const double unit = std::pow(10.0, digits);
  const double scaled = value.as_double() * unit;
  return Value::real((method == "ceil" ? std::ceil(scaled) : std::floor(scaled)) / unit,
                     value.special);
}

Value file_size(Interpreter&, const Value& value, Arguments& given) {
  const Parameters p("filesizeformat", given, {"binary"});
  const bool binary = p.flag(0, false);
  const double base = binary ? 1024 : 1000;
  require_defined(value);
  std::optional<double> parsed;
  if (value.is_text()) parsed = parse_real(value.bytes());
  if (value.is_number()) parsed = value.as_double();
  require(parsed.has_value(), "filesizeformat: found a '", type_name(value),
          "' object that is no number");
  const double bytes = *parsed;
  require(std::fabs(bytes) < kLargestInteger, "filesizeformat: the number is out of range");
  if (bytes == 1) return Value::text("1 Byte", value.special);
  if (bytes < base) {
    return Value::text(concat(integer_text(static_cast<Integer>(bytes)), " Bytes"), value.special);
  }
  static constexpr std::string_view kUnits = "kMGTPEZY";
  double unit = base;
  size_t i = 0;
  while (i + 1 < kUnits.size() && bytes >= unit * base) {
    unit *= base;
    ++i;
  }
  char number[400];
  const auto end =
      std::to_chars(number, number + sizeof(number), bytes / unit, std::chars_format::fixed, 1);
  std::string out(number, end.ptr);
  out += ' ';
  out += binary && i == 0 ? 'K' : kUnits[i];
  return Value::text(out + (binary ? "iB" : "B"), value.special);
}

}  // namespace

const FilterTable& number_filters() {
  static const FilterTable kFilters = {{"abs", abs_filter},
                                       {"filesizeformat", file_size},
                                       {"float", float_filter},
                                       {"int", int_filter},
                                       {"round", round_filter}};
  return kFilters;
}

}  // namespace longspur::io::chat
