// Numbers in strings, with blanks around and underscores within.
#include "io/chat/numbers.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>
#include <string>

#include "io/chat/unicode.h"

namespace longspur::io::chat {
namespace {

std::string_view trimmed(std::string_view text) {
  const size_t begin = skip_spaces(text, 0);
  return text.substr(begin, trim_end(text, begin, text.size()) - begin);
}

int digit_of(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'z') return c - 'a' + 10;
  if (c >= 'A' && c <= 'Z') return c - 'A' + 10;
  return 99;
}

bool is_digit_char(char c) { return c >= '0' && c <= '9'; }

// Takes the underscores out; nothing when one does not stand between digits.
std::optional<std::string> without_underscores(std::string_view text) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '_') {
      out += text[i];
    } else if (i == 0 || i + 1 == text.size() || digit_of(text[i - 1]) > 35 ||
               digit_of(text[i + 1]) > 35) {
      return std::nullopt;
    }
  }
  return out;
}

char lowered(char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; }

}  // namespace

std::optional<Integer> parse_integer(std::string_view text, int base) {
  text = trimmed(text);
  const bool negative = text.starts_with('-');
  if (negative || text.starts_with('+')) text.remove_prefix(1);
  if (text.size() > 2 && text[0] == '0') {
    const char kind = lowered(text[1]);
    const int named = kind == 'x' ? 16 : kind == 'o' ? 8 : kind == 'b' ? 2 : 0;
    if (named != 0 && (base == named || base == 0)) {
      base = named;
      text.remove_prefix(text[2] == '_' ? 3 : 2);
    }
  }
  if (base == 0) {
    if (text.size() > 1 && text[0] == '0' &&
        text.find_first_not_of("0_") != std::string_view::npos) {
      return std::nullopt;
    }
    base = 10;
  }
  const auto digits = without_underscores(text);
  if (!digits || digits->empty()) return std::nullopt;
  Integer value = 0;
  for (const char c : *digits) {
    if (digit_of(c) >= base) return std::nullopt;
    if (__builtin_mul_overflow(value, Integer(base), &value) ||
        __builtin_add_overflow(value, Integer(digit_of(c)), &value)) {
      fail("an integer of the template is too large");
    }
  }
  return negative ? -value : value;
}

std::optional<double> parse_real(std::string_view text) {
  text = trimmed(text);
  const bool negative = text.starts_with('-');
  if (negative || text.starts_with('+')) text.remove_prefix(1);
  std::string word;
  for (const char c : text.substr(0, 9)) word += lowered(c);
  const double sign = negative ? -1 : 1;
  if (word == "inf" || word == "infinity") return sign * std::numeric_limits<double>::infinity();
  if (word == "nan") return std::numeric_limits<double>::quiet_NaN();
  for (size_t i = 0; i < text.size(); ++i) {  // underscores stand between digits
    if (text[i] == '_' && (i == 0 || i + 1 == text.size() || !is_digit_char(text[i - 1]) ||
                           !is_digit_char(text[i + 1]))) {
      return std::nullopt;
    }
  }
  std::string digits;
  for (const char c : text) {
    if (c != '_') digits += c;
  }
  if (digits.empty() || !(is_digit_char(digits[0]) || digits[0] == '.')) return std::nullopt;
  double value = 0;
  const char* const end = digits.data() + digits.size();
  const auto parsed = std::from_chars(digits.data(), end, value);
  if (parsed.ptr != end || parsed.ec == std::errc::invalid_argument) return std::nullopt;
  if (parsed.ec == std::errc::result_out_of_range) value = std::strtod(digits.c_str(), nullptr);
  return sign * value;
}

}  // namespace longspur::io::chat
