// Splits a verb's arguments into option texts; knows syntax only, not what values mean.
#pragma once

#include <span>
#include <string>

#include "app/cli/settings.h"
#include "app/cli/verb.h"

namespace longspur::app::cli {

// `--name value`, `--name=value`, `-n value`, flags also as --no-name. A repeated option takes its
// last text, lists collect all. Throws UsageError on unknown flags (with the nearest known one),
// missing values and stray words.
FlagTexts parse_command_line(const Verb& verb, std::span<const std::string> arguments);

// The name among `known` closest to `word`, or empty when none is close.
std::string nearest_name(const std::string& word, std::span<const std::string> known);

}  // namespace longspur::app::cli
