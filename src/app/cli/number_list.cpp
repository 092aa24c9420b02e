#include "app/cli/number_list.h"

#include <algorithm>
#include <charconv>

#include "base/error.h"

namespace longspur::app::cli {

std::vector<int64_t> parse_number_list(const std::string& flag,
                                       const std::string& text,
                                       int64_t least) {
  std::vector<int64_t> numbers;
  for (const char *begin = text.data(), *end = begin + text.size();;) {
    const char* comma = std::find(begin, end, ',');
    int64_t number = 0;
    const auto [stop, error] = std::from_chars(begin, comma, number);
    if (error != std::errc() || stop != comma || number < least || number > (int64_t(1) << 24)) {
      throw UsageError(concat(flag, ": found '", text, "', expected numbers of at least ", least,
                              " with commas between them"));
    }
    numbers.push_back(number);
    if (comma == end) break;
    begin = comma + 1;
  }
  std::sort(numbers.begin(), numbers.end());
  numbers.erase(std::unique(numbers.begin(), numbers.end()), numbers.end());
  return numbers;
}

}  // namespace longspur::app::cli
