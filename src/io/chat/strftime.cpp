// strftime's directives in the C locale. Unknown ones stay as they are.
#include "io/chat/strftime.h"

#include <array>
#include <cstdint>
#include <optional>
#include <utility>

namespace longspur::io::chat {
namespace {

constexpr std::array<const char*, 7> kDays = {"Sunday",   "Monday", "Tuesday", "Wednesday",
                                              "Thursday", "Friday", "Saturday"};
constexpr std::array<const char*, 12> kMonths = {"January",   "February", "March",    "April",
                                                 "May",       "June",     "July",     "August",
                                                 "September", "October",  "November", "December"};

struct Date {
  int64_t year;
  int month, day, hour, minute, second;  // month from 1
  int weekday, yearday;                  // Sunday is 0; January 1st is 0
};

bool is_leap(int64_t year) { return (year % 4 == 0 && year % 100 != 0) || year % 400 == 0; }

// Civil date of a count of days since 1970, in eras of 400 years that start in March.
Date date_of(std::time_t now) {
  int64_t days = static_cast<int64_t>(now) / 86400;
  int64_t rest = static_cast<int64_t>(now) % 86400;
  if (rest < 0) {
    rest += 86400;
    --days;
  }
  const int64_t shifted = days + 719468;  // days from 0000-03-01 to 1970-01-01
  const int64_t era = (shifted >= 0 ? shifted : shifted - 146096) / 146097;
  const int64_t of_era = shifted - era * 146097;
  const int64_t year = (of_era - of_era / 1460 + of_era / 36524 - of_era / 146096) / 365;
  const int64_t of_year = of_era - (365 * year + year / 4 - year / 100);
  const int64_t shifted_month = (5 * of_year + 2) / 153;
  Date out{};
  out.month = static_cast<int>(shifted_month < 10 ? shifted_month + 3 : shifted_month - 9);
  out.day = static_cast<int>(of_year - (153 * shifted_month + 2) / 5 + 1);
  out.year = year + era * 400 + (out.month <= 2 ? 1 : 0);
  out.hour = static_cast<int>(rest / 3600);
  out.minute = static_cast<int>(rest / 60 % 60);
  out.second = static_cast<int>(rest % 60);
  out.weekday = static_cast<int>(((days + 4) % 7 + 7) % 7);
  static constexpr std::array<int, 12> kBefore = {0,   31,  59,  90,  120, 151,
                                                  181, 212, 243, 273, 304, 334};
  out.yearday = kBefore[static_cast<size_t>(out.month - 1)] + out.day - 1 +
                (out.month > 2 && is_leap(out.year) ? 1 : 0);
  return out;
}

std::string padded(int64_t value, size_t width, char fill) {
  std::string digits = std::to_string(value);
  if (digits.size() < width) digits.insert(0, width - digits.size(), fill);
  return digits;
}

// ISO 8601 week and its year.
std::pair<int64_t, int> iso_week(const Date& date) {
  const int weekday = (date.weekday + 6) % 7;  // Monday is 0
  const int week = (date.yearday - weekday + 10) / 7;
  const auto weeks_in = [](int64_t year) {
    const auto last_day = [](int64_t y) { return ((y + y / 4 - y / 100 + y / 400) % 7 + 7) % 7; };
    return last_day(year) == 4 || last_day(year - 1) == 3 ? 53 : 52;
  };
  if (week < 1) return {date.year - 1, weeks_in(date.year - 1)};
  if (week > weeks_in(date.year)) return {date.year + 1, 1};
  return {date.year, week};
}

class Formatter {
 public:
  explicit Formatter(std::time_t now) : now_(now), date_(date_of(now)) {}

  std::string run(std::string_view format) {
    std::string out;
    for (size_t i = 0; i < format.size(); ++i) {
      if (format[i] != '%' || i + 1 >= format.size()) {
        out += format[i];
        continue;
      }
      char flag = '\0';
      size_t at = i + 1;
      if (std::string_view("-_0^#").find(format[at]) != std::string_view::npos &&
          at + 1 < format.size()) {
        flag = format[at++];
      }
      if ((format[at] == 'E' || format[at] == 'O') && at + 1 < format.size()) ++at;
      flag_ = flag;
      if (const auto text = directive(format[at])) {
        out += flag == '^' ? upper(*text) : *text;
        i = at;
      } else {
        out += format[i];
      }
    }
    return out;
  }

 private:
  static std::string upper(std::string text) {
    for (char& c : text) {
      if (c >= 'a' && c <= 'z') c = static_cast<char>(c - 'a' + 'A');
    }
    return text;
  }

  std::string number(int64_t value, size_t width, char fill = '0') const {
    if (flag_ == '-') return std::to_string(value);
    if (flag_ == '_') fill = ' ';
    if (flag_ == '0') fill = '0';
    return padded(value, width, fill);
  }

  std::string day_name() const { return kDays[static_cast<size_t>(date_.weekday)]; }
  std::string month_name() const { return kMonths[static_cast<size_t>(date_.month - 1)]; }
  int hour12() const { return date_.hour % 12 == 0 ? 12 : date_.hour % 12; }

  std::optional<std::string> directive(char kind) const {
    if (const auto text = named(kind)) return text;
    if (const auto text = composed(kind)) return text;
    switch (kind) {
      case 'd':
        return number(date_.day, 2);
      case 'e':
        return number(date_.day, 2, ' ');
      case 'm':
        return number(date_.month, 2);
      case 'y':
        return number((date_.year % 100 + 100) % 100, 2);
      case 'Y':
        return number(date_.year, 1);
      case 'C':
        return number(date_.year / 100, 2);
      case 'H':
        return number(date_.hour, 2);
      case 'k':
        return number(date_.hour, 2, ' ');
      case 'I':
        return number(hour12(), 2);
      case 'l':
        return number(hour12(), 2, ' ');
      case 'M':
        return number(date_.minute, 2);
      case 'S':
        return number(date_.second, 2);
      case 'f':
        return std::string("000000");
      case 'j':
        return number(date_.yearday + 1, 3);
      case 'w':
        return number(date_.weekday, 1);
      case 'u':
        return number(date_.weekday == 0 ? 7 : date_.weekday, 1);
      case 'U':
        return number((date_.yearday + 7 - date_.weekday) / 7, 2);
      case 'W':
        return number((date_.yearday + 7 - (date_.weekday + 6) % 7) / 7, 2);
      case 'V':
        return number(iso_week(date_).second, 2);
      case 'G':
        return number(iso_week(date_).first, 1);
      case 'g':
        return number(iso_week(date_).first % 100, 2);
      case 's':
        return number(static_cast<int64_t>(now_), 1);
      default:
        return std::nullopt;
    }
  }

  std::optional<std::string> named(char kind) const {
    switch (kind) {
      case 'a':
        return day_name().substr(0, 3);
      case 'A':
        return day_name();
      case 'b':
      case 'h':
        return month_name().substr(0, 3);
      case 'B':
        return month_name();
      case 'p':
        return std::string(date_.hour < 12 ? "AM" : "PM");
      case 'P':
        return std::string(date_.hour < 12 ? "am" : "pm");
      case 'Z':
      case 'z':
        return std::string();  // as Python's datetime without a zone
      case '%':
        return std::string("%");
      case 'n':
        return std::string("\n");
      case 't':
        return std::string("\t");
      default:
        return std::nullopt;
    }
  }

  std::optional<std::string> composed(char kind) const {
    const auto expand = [this](std::string_view format) { return Formatter(now_).run(format); };
    switch (kind) {
      case 'c':
        return expand("%a %b %e %H:%M:%S %Y");
      case 'x':
      case 'D':
        return expand("%m/%d/%y");
      case 'X':
      case 'T':
        return expand("%H:%M:%S");
      case 'F':
        return expand("%Y-%m-%d");
      case 'R':
        return expand("%H:%M");
      case 'r':
        return expand("%I:%M:%S %p");
      default:
        return std::nullopt;
    }
  }

  std::time_t now_;
  Date date_;
  char flag_ = '\0';
};

}  // namespace

std::string format_time(std::string_view format, std::time_t now) {
  return Formatter(now).run(format);
}

}  // namespace longspur::io::chat
