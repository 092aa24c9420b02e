// One row of the option table. Parser, help, configuration file, environment, --print-config,
// completion and docs/cli.md are all made from these rows; nothing else names a flag.
#pragma once

#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace longspur::app::cli {

enum class OptionType { kFlag, kInteger, kNumber, kText, kTextList, kIntegerList };
enum class Completes { kNothing, kFile, kModel };

struct Option {
  std::string name;  // "max-tokens": flag --max-tokens, variable LONGSPUR_MAX_TOKENS, config key
  OptionType type = OptionType::kText;
  std::string fallback = {};     // the default as it would be typed; empty: not set (flags: false)
  std::string group = {};        // heading in help
  std::string help = {};         // one sentence without a full stop
  std::string placeholder = {};  // of the value in help: "N", "FILE"
  char letter = 0;               // short form
  std::vector<std::string> choices = {};  // of a text; empty: any
  double low = -std::numeric_limits<double>::infinity();
  double high = std::numeric_limits<double>::infinity();
  bool positional = false;  // may also stand without its flag
  bool only_flag = false;   // not from the environment or a file (--help, --config itself)
  Completes completes = Completes::kNothing;
};

// monostate: not set and without a default.
using Value = std::variant<std::monostate,
                           bool,
                           int64_t,
                           double,
                           std::string,
                           std::vector<std::string>,
                           std::vector<int64_t>>;

// The value that `texts` (several only for lists) spell. Throws UsageError that begins with `where`
// ("--max-tokens", "LONGSPUR_MAX_TOKENS"), what was found and what was expected.
Value parse_value(const Option& option, std::span<const std::string> texts, std::string_view where);
// The option's default.
Value default_value(const Option& option);
// Checks choices and bounds of a value that already has the option's type.
void check_value(const Option& option, const Value& value, std::string_view where);

bool is_list(OptionType type);
std::string_view type_name(OptionType type);  // as error messages say it: "an integer"
std::string flag_name(const Option& option);  // "--max-tokens"
std::string environment_name(const Option& option);

}  // namespace longspur::app::cli
