// Help texts, made from the registry and the option table.
#pragma once

#include <span>
#include <string>

#include "app/cli/verb.h"

namespace longspur::app::cli {

std::string program_help(std::span<const Verb> verbs);
std::string verb_help(const Verb& verb);

// "-m, --model MODEL", "--json"
std::string option_spelling(const Option& option);
// What an option's default reads like: "256", "none", "off".
std::string default_text(const Option& option);

// docs/cli.md
std::string reference_page(std::span<const Verb> verbs);

}  // namespace longspur::app::cli
