#include "app/cli/completion.h"

#include "base/error.h"

namespace longspur::app::cli {

namespace {

std::string join(const std::vector<std::string>& words) {
  std::string out;
  for (const std::string& word : words) out += (out.empty() ? "" : " ") + word;
  return out;
}

std::vector<std::string> verb_names(std::span<const Verb> verbs) {
  std::vector<std::string> names;
  for (const Verb& verb : verbs)
    if (!verb.hidden) names.push_back(verb.name);
  return names;
}

bool takes_file(const Option& option) { return option.completes != Completes::kNothing; }

// In single quotes for any of the shells.
std::string quoted(const std::string& text) {
  std::string out = "'";
  for (const char c : text) {
    if (c == '\'') out += "'\\'";
    out += c;
  }
  out += '\'';
  return out;
}

std::string bash_values(const Verb& verb) {
  std::string out;
  for (const Option& option : verb.options) {
    if (option.type == OptionType::kFlag) continue;
    std::string pattern = flag_name(option);
    if (option.letter != 0) pattern += concat("|-", option.letter);
    std::string action = "return";
    if (!option.choices.empty())
      action = concat("COMPREPLY=($(compgen -W ", quoted(join(option.choices)),
                      " -- \"$cur\")); return");
    if (takes_file(option))
      action = concat("compopt -o filenames; COMPREPLY=($(compgen -f",
                      option.completes == Completes::kModel ? " -W smollm2" : "",
                      " -- \"$cur\")); return");
    out += concat("        ", pattern, ") ", action, " ;;\n");
  }
  return out;
}

std::string zsh_spec(const Option& option) {
  std::string help;
  for (const char c : option.help) {
    if (c == '[' || c == ']' || c == ':') help += '\\';
    help += c;
  }
  std::string spec = concat(flag_name(option), "[", help, "]");
  if (option.type == OptionType::kFlag) return quoted(spec);
  spec += concat(":", option.placeholder, ":");
  if (!option.choices.empty()) spec += concat("(", join(option.choices), ")");
  if (takes_file(option)) spec += "_files";
  return quoted(is_list(option.type) ? concat("*", spec) : spec);
}

}  // namespace

std::string bash_completion(std::span<const Verb> verbs) {
  std::string out =
      "# bash completion of longspur: source <(longspur completion bash)\n"
      "_longspur() {\n"
      "  local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]}\n"
      "  if [ \"$COMP_CWORD\" -eq 1 ]; then\n"
      "    COMPREPLY=($(compgen -W '" +
      join(verb_names(verbs)) +
      " --help --version' -- \"$cur\"))\n"
      "    return\n"
      "  fi\n"
      "  case ${COMP_WORDS[1]} in\n";
  for (const Verb& verb : verbs) {
    if (verb.hidden) continue;
    std::vector<std::string> flags;
    for (const Option& option : verb.options) flags.push_back(flag_name(option));
    out += concat("    ", verb.name, ")\n      case $prev in\n", bash_values(verb), "      esac\n",
                  "      COMPREPLY=($(compgen -W '", join(flags), "' -- \"$cur\")) ;;\n");
  }
  return out + "  esac\n}\ncomplete -o default -F _longspur longspur\n";
}

std::string zsh_completion(std::span<const Verb> verbs) {
  std::string out =
      "#compdef longspur\n"
      "# zsh completion of longspur: longspur completion zsh > ~/.zfunc/_longspur\n"
      "_longspur() {\n"
      "  local -a verbs\n"
      "  verbs=(\n";
  for (const Verb& verb : verbs)
    if (!verb.hidden) out += concat("    ", quoted(concat(verb.name, ":", verb.summary)), "\n");
  out +=
      "  )\n"
      "  if (( CURRENT == 2 )); then _describe verb verbs; return; fi\n"
      "  local verb=$words[2]\n"
      "  shift words; (( CURRENT-- ))\n"
      "  case $verb in\n";
  for (const Verb& verb : verbs) {
    if (verb.hidden) continue;
    out += concat("    ", verb.name, ") _arguments");
    for (const Option& option : verb.options) out += concat(" \\\n      ", zsh_spec(option));
    out += " ;;\n";
  }
  return out +
         "  esac\n}\n"
         "if [ \"$funcstack[1]\" = _longspur ]; then _longspur \"$@\"; else compdef _longspur "
         "longspur; fi\n";
}

std::string fish_completion(std::span<const Verb> verbs) {
  std::string out =
      "# fish completion of longspur: longspur completion fish | source\n"
      "complete -c longspur -f\n";
  for (const Verb& verb : verbs) {
    if (verb.hidden) continue;
    out += concat("complete -c longspur -n __fish_use_subcommand -a ", verb.name, " -d ",
                  quoted(verb.summary), "\n");
    for (const Option& option : verb.options) {
      out += concat("complete -c longspur -n '__fish_seen_subcommand_from ", verb.name, "' -l ",
                    option.name, " -d ", quoted(option.help));
      if (option.letter != 0) out += concat(" -s ", option.letter);
      if (option.type != OptionType::kFlag) out += takes_file(option) ? " -r -F" : " -x";
      if (!option.choices.empty()) out += concat(" -a ", quoted(join(option.choices)));
      out += "\n";
    }
  }
  return out;
}

}  // namespace longspur::app::cli
