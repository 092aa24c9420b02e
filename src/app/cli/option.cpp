#include "app/cli/option.h"

#include <algorithm>
#include <cctype>
#include <charconv>
#include <cmath>

#include "base/error.h"

namespace longspur::app::cli {

namespace {

[[noreturn]] void refuse(std::string_view where, std::string_view found, std::string_view wanted) {
  throw UsageError(concat(where, ": found '", found, "', expected ", wanted));
}

bool parse_flag(const std::string& text, std::string_view where) {
  for (const char* yes : {"true", "1", "yes", "on"})
    if (text == yes) return true;
  for (const char* no : {"false", "0", "no", "off"})
    if (text == no) return false;
  refuse(where, text, "true or false");
}

template <class T>
T parse_number(const std::string& text, std::string_view where, OptionType type) {
  T value{};
  const char* begin = text.data();
  const char* end = begin + text.size();
  if (begin != end && *begin == '+') ++begin;
  const auto [stop, error] = std::from_chars(begin, end, value);
  if (error != std::errc() || stop != end) refuse(where, text, type_name(type));
  return value;
}

double parse_real(const std::string& text, std::string_view where) {
  const auto value = parse_number<double>(text, where, OptionType::kNumber);
  if (!std::isfinite(value)) refuse(where, text, "a finite number");
  return value;
}

std::string shown(double number) {
  if (number == std::floor(number) && std::abs(number) < 1e15)
    return std::to_string(int64_t(number));
  return concat(number);
}

std::string bounds_of(const Option& option) {
  if (std::isinf(option.high)) return concat("at least ", shown(option.low));
  if (std::isinf(option.low)) return concat("at most ", shown(option.high));
  return concat(shown(option.low), " to ", shown(option.high));
}

void check_bounds(const Option& option, double number, std::string_view where) {
  if (number < option.low || number > option.high) {
    throw UsageError(concat(where, ": found ", shown(number), ", expected ", bounds_of(option)));
  }
}

void check_choice(const Option& option, const std::string& text, std::string_view where) {
  if (option.choices.empty()) return;
  if (std::find(option.choices.begin(), option.choices.end(), text) != option.choices.end()) return;
  std::string wanted;
  for (const std::string& choice : option.choices)
    wanted += (wanted.empty() ? "" : choice == option.choices.back() ? " or " : ", ") + choice;
  refuse(where, text, wanted);
}

}  // namespace

bool is_list(OptionType type) {
  return type == OptionType::kTextList || type == OptionType::kIntegerList;
}

std::string_view type_name(OptionType type) {
  switch (type) {
    case OptionType::kFlag:
      return "true or false";
    case OptionType::kInteger:
    case OptionType::kIntegerList:
      return "an integer";
    case OptionType::kNumber:
      return "a number";
    case OptionType::kText:
    case OptionType::kTextList:
      return "a text";
  }
  throw InternalError("type_name: found a value outside the enum");
}

std::string flag_name(const Option& option) { return concat("--", option.name); }

std::string environment_name(const Option& option) {
  std::string name = "LONGSPUR_";
  for (const char c : option.name)
    name += c == '-' ? '_' : char(std::toupper(static_cast<unsigned char>(c)));
  return name;
}

Value parse_value(const Option& option,
                  std::span<const std::string> texts,
                  std::string_view where) {
  LONGSPUR_ASSERT(!texts.empty());
  Value value;
  if (option.type == OptionType::kTextList) {
    value = std::vector<std::string>(texts.begin(), texts.end());
  } else if (option.type == OptionType::kIntegerList) {
    std::vector<int64_t> numbers;
    for (const std::string& text : texts)
      numbers.push_back(parse_number<int64_t>(text, where, option.type));
    value = std::move(numbers);
  } else if (const std::string& text = texts.back(); option.type == OptionType::kFlag) {
    value = parse_flag(text, where);
  } else if (option.type == OptionType::kInteger) {
    value = parse_number<int64_t>(text, where, option.type);
  } else if (option.type == OptionType::kNumber) {
    value = parse_real(text, where);
  } else {
    value = text;
  }
  check_value(option, value, where);
  return value;
}

Value default_value(const Option& option) {
  if (option.type == OptionType::kFlag) return option.fallback == "true";
  if (option.type == OptionType::kTextList && option.fallback.empty())
    return std::vector<std::string>{};
  if (option.type == OptionType::kIntegerList && option.fallback.empty())
    return std::vector<int64_t>{};
  if (option.fallback.empty()) return std::monostate{};
  return parse_value(option, std::span(&option.fallback, 1), flag_name(option));
}

void check_value(const Option& option, const Value& value, std::string_view where) {
  if (const auto* integer = std::get_if<int64_t>(&value))
    check_bounds(option, double(*integer), where);
  if (const auto* number = std::get_if<double>(&value)) check_bounds(option, *number, where);
  if (const auto* text = std::get_if<std::string>(&value)) check_choice(option, *text, where);
  if (const auto* texts = std::get_if<std::vector<std::string>>(&value))
    for (const std::string& text : *texts) check_choice(option, text, where);
  if (const auto* integers = std::get_if<std::vector<int64_t>>(&value))
    for (const int64_t integer : *integers) check_bounds(option, double(integer), where);
}

}  // namespace longspur::app::cli
