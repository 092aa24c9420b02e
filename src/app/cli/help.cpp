#include "app/cli/help.h"

#include <algorithm>

#include "base/error.h"

namespace longspur::app::cli {

namespace {

constexpr size_t kWidth = 96;         // columns of a help text
constexpr size_t kOptionColumn = 30;  // where an option's explanation begins

// `text` in lines of at most kWidth, each but the first begun with `indent` blanks; the first
// starts at column `column`.
std::string wrap(const std::string& text, size_t indent, size_t column) {
  std::string out;
  size_t begin = 0;
  while (begin < text.size()) {
    const size_t end = std::min(text.find(' ', begin), text.size());
    const size_t length = end - begin;
    if (column + length + (begin > 0 ? 1 : 0) > kWidth && column > indent) {
      out += concat("\n", std::string(indent, ' '));
      column = indent;
    } else if (begin > 0) {
      out += ' ';
      ++column;
    }
    out.append(text, begin, length);
    column += length;
    begin = end + 1;
  }
  return out;
}

std::string explanation(const Option& option) {
  std::string text = option.help;
  if (!option.choices.empty()) {
    text += ": ";
    for (const std::string& choice : option.choices)
      text += concat(choice == option.choices.front() ? "" : "|", choice);
  }
  const std::string fallback = default_text(option);
  if (!option.only_flag && fallback != "none" && fallback != "off")
    text += concat(" (default ", fallback, ")");
  return text;
}

std::string option_line(const Option& option) {
  std::string line = concat(option.letter != 0 ? "  " : "      ", option_spelling(option));
  if (line.size() + 2 > kOptionColumn) {
    line += concat("\n", std::string(kOptionColumn, ' '));
  } else {
    line.resize(kOptionColumn, ' ');
  }
  return line + wrap(explanation(option), kOptionColumn, kOptionColumn) + "\n";
}

// Groups in the order of their first option.
std::vector<std::string> groups_of(const Verb& verb) {
  std::vector<std::string> groups;
  for (const Option& option : verb.options)
    if (std::find(groups.begin(), groups.end(), option.group) == groups.end())
      groups.push_back(option.group);
  return groups;
}

std::string usage_line(const Verb& verb) {
  std::string line = concat("longspur ", verb.name);
  for (const Option& option : verb.options)
    if (option.positional) line += concat(" [", option.placeholder, "]");
  return line + " [options]";
}

// Pipes would end the cell of a Markdown table.
std::string cell(const std::string& text) {
  std::string out;
  for (const char c : text) out += c == '|' ? std::string("\\|") : std::string(1, c);
  return out;
}

std::string reference_row(const Option& option) {
  const std::string variable = option.only_flag ? "" : concat("`", environment_name(option), "`");
  std::string help = option.help;
  if (!option.choices.empty()) {
    help += ":";
    for (const std::string& choice : option.choices)
      help += (choice == option.choices.front() ? " `" : ", `") + choice + "`";
  }
  return concat("| `", option_spelling(option), "` | ", default_text(option), " | ", variable,
                " | ", cell(help), " |\n");
}

std::string reference_section(const Verb& verb) {
  std::string out = concat("\n## ", verb.name, "\n\n", verb.summary, ".\n");
  if (!verb.details.empty()) out += concat("\n", verb.details, "\n");
  out += concat("\n```\n", usage_line(verb), "\n\n");
  for (const std::string& example : verb.examples) out += example + "\n";
  out += "```\n";
  for (const std::string& group : groups_of(verb)) {
    if (group == "Common") continue;
    out += concat("\n| ", group, " | default | variable | |\n| --- | --- | --- | --- |\n");
    for (const Option& option : verb.options)
      if (option.group == group) out += reference_row(option);
  }
  return out;
}

}  // namespace

std::string option_spelling(const Option& option) {
  std::string text = option.letter != 0 ? std::string("-") + option.letter + ", " : "";
  text += flag_name(option);
  if (option.type != OptionType::kFlag) text += concat(" ", option.placeholder);
  return text;
}

std::string default_text(const Option& option) {
  if (option.type == OptionType::kFlag) return option.fallback == "true" ? "on" : "off";
  return option.fallback.empty() ? "none" : option.fallback;
}

std::string program_help(std::span<const Verb> verbs) {
  std::string out =
      "longspur: runs language models on long documents\n\n"
      "usage: longspur VERB [options]\n\nverbs:\n";
  for (const Verb& verb : verbs) {
    if (verb.hidden) continue;
    std::string line = concat("  ", verb.name);
    line.resize(std::max<size_t>(line.size() + 2, 16), ' ');
    out += line + verb.summary + "\n";
  }
  out +=
      "\nexamples:\n"
      "  longspur generate --model smollm2 --chat -p 'Name three birds that migrate.'\n"
      "  longspur chat --model smollm2\n"
      "  longspur VERB --help\n\n"
      "  longspur --version prints version and build\n";
  return out;
}

std::string verb_help(const Verb& verb) {
  std::string out =
      concat("longspur ", verb.name, ": ", verb.summary, "\n\nusage: ", usage_line(verb), "\n");
  if (!verb.details.empty()) out += concat("\n", wrap(verb.details, 0, 0), "\n");
  out += "\nexamples:\n";
  for (const std::string& example : verb.examples) out += concat("  ", example, "\n");
  for (const std::string& group : groups_of(verb)) {
    out += concat("\n", group, ":\n");
    for (const Option& option : verb.options)
      if (option.group == group) out += option_line(option);
  }
  return out +
         "\nAn option that is not on the command line is taken from LONGSPUR_NAME (--max-tokens:\n"
         "LONGSPUR_MAX_TOKENS), else from the --config file, else its default. --no-NAME turns a\n"
         "switch off. Exit codes: 0 done, 1 failed, 2 impossible command line, 130 interrupted.\n";
}

std::string reference_page(std::span<const Verb> verbs) {
  std::string out =
      "# Command line\n\n"
      "Written by `longspur reference`; `tests/python/test_cli.py` checks that it is current.\n\n"
      "`longspur VERB [options]`. Every verb has `--help`, and `--json` for exactly one JSON "
      "object\n"
      "on stdout. Logs, progress, statistics and errors go to stderr; an error is one line that\n"
      "begins with `longspur:`. Exit codes: 0 done, 1 failed, 2 impossible command line, 130\n"
      "interrupted.\n\n"
      "An option comes from its flag, else its environment variable, else the file of `--config`,\n"
      "else its default. The file is TOML: keys are option names; keys at the top hold for every\n"
      "verb that has the option, a table such as `[generate]` for that verb, and wins. Unknown "
      "keys\n"
      "are errors. `--print-config` shows the result and where each value comes from. Lists are\n"
      "TOML arrays; in a variable, one text or a JSON array. `--no-NAME` turns a switch off.\n\n"
      "| every verb | default | variable | |\n| --- | --- | --- | --- |\n";
  for (const Option& option : verbs.front().options)
    if (option.group == "Common") out += reference_row(option);
  for (const Verb& verb : verbs)
    if (!verb.hidden) out += reference_section(verb);
  return out;
}

}  // namespace longspur::app::cli
