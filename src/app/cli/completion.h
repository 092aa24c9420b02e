// Shell completion scripts, made from the registry and the option table.
#pragma once

#include <span>
#include <string>

#include "app/cli/verb.h"

namespace longspur::app::cli {

std::string bash_completion(std::span<const Verb> verbs);
std::string zsh_completion(std::span<const Verb> verbs);
std::string fish_completion(std::span<const Verb> verbs);

}  // namespace longspur::app::cli
