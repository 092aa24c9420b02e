#include "app/cli/command_line.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <numeric>

#include "base/error.h"

namespace longspur::app::cli {

namespace {

std::string first_line(const std::string& text) { return text.substr(0, text.find('\n')); }

void add_flag(CLI::App& app, const Option& option, FlagTexts& texts) {
  std::string names = concat("--", option.name, ",!--no-", option.name);
  if (option.letter != 0) names = concat("-", option.letter, ",", names);
  app.add_flag_function(names, [&texts, name = option.name](
                                   int64_t count) { texts[name] = {count > 0 ? "true" : "false"}; })
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
}

void add_value(CLI::App& app, const Option& option, FlagTexts& texts) {
  std::string names = flag_name(option);
  if (option.letter != 0) names += concat(",-", option.letter);
  if (option.positional) names += concat(",", option.name);
  const auto collect = [&texts, name = option.name](const CLI::results_t& results) {
    texts[name] = results;
    return true;
  };
  // A plain callback: CLI11's own vector options would split texts that look like "[a,b]".
  app.add_option(names, collect)
      ->type_size(1)
      ->expected(1)
      ->multi_option_policy(is_list(option.type) ? CLI::MultiOptionPolicy::TakeAll
                                                 : CLI::MultiOptionPolicy::TakeLast);
}

// CLI11 reads "--name=" followed by a word as that word being the value; it is an empty text.
std::vector<std::string> spell_out_empty(const Verb& verb, std::span<const std::string> arguments) {
  const auto matches = [&](const std::string& argument, const char* suffix) {
    return std::any_of(verb.options.begin(), verb.options.end(), [&](const Option& option) {
      const bool letter =
          *suffix == '\0' && option.letter != 0 && argument == concat("-", option.letter);
      return option.type != OptionType::kFlag && (letter || argument == flag_name(option) + suffix);
    });
  };
  std::vector<std::string> out;
  for (size_t i = 0; i < arguments.size(); ++i) {
    if (matches(arguments[i], "=")) {
      out.push_back(arguments[i].substr(0, arguments[i].size() - 1));
      out.emplace_back();
      continue;
    }
    out.push_back(arguments[i]);
    if (matches(arguments[i], "") && i + 1 < arguments.size()) out.push_back(arguments[++i]);
  }
  return out;
}

[[noreturn]] void refuse_extra(const Verb& verb, const std::string& extra) {
  if (extra.empty() || extra[0] != '-') {
    throw UsageError(concat(verb.name, ": found the word '", extra,
                            "', expected only options; see ", "longspur ", verb.name, " --help"));
  }
  std::vector<std::string> known;
  for (const Option& option : verb.options) known.push_back(flag_name(option));
  const std::string near = nearest_name(extra.substr(0, extra.find('=')), known);
  const std::string hint = near.empty() ? "" : concat("did you mean ", near, "? ");
  throw UsageError(concat(verb.name, ": unknown flag '", extra, "'; ", hint, "see longspur ",
                          verb.name, " --help"));
}

size_t edit_distance(const std::string& a, const std::string& b) {
  std::vector<size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), size_t(0));
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t replace = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
      diagonal = row[j];
      row[j] = std::min({replace, row[j] + 1, row[j - 1] + 1});
    }
  }
  return row.back();
}

}  // namespace

FlagTexts parse_command_line(const Verb& verb, std::span<const std::string> arguments) {
  CLI::App app;
  app.set_help_flag("");
  app.allow_extras();
  FlagTexts texts;
  for (const Option& option : verb.options) {
    if (option.type == OptionType::kFlag) {
      add_flag(app, option, texts);
    } else {
      add_value(app, option, texts);
    }
  }
  std::vector<std::string> reversed = spell_out_empty(verb, arguments);
  std::reverse(reversed.begin(), reversed.end());  // CLI11 takes them from the back
  try {
    app.parse(reversed);
  } catch (const CLI::ParseError& error) {
    throw UsageError(concat(verb.name, ": ", first_line(error.what())));
  }
  if (const auto extras = app.remaining(); !extras.empty()) refuse_extra(verb, extras.front());
  return texts;
}

std::string nearest_name(const std::string& word, std::span<const std::string> known) {
  std::string best;
  size_t least = std::max<size_t>(2, word.size() / 3) + 1;
  for (const std::string& name : known) {
    const size_t distance = edit_distance(word, name);
    if (distance < least) {
      least = distance;
      best = name;
    }
  }
  return best;
}

}  // namespace longspur::app::cli
