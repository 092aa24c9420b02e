// Reads --config: TOML whose keys are option names. Keys at the top hold for every verb that has
// the option; a table with a verb's name holds for that verb and wins.
#pragma once

#include <span>
#include <string>
#include <string_view>

#include "app/cli/settings.h"
#include "app/cli/verb.h"

namespace longspur::app::cli {

// Throws UsageError with file and line: unreadable file, bad TOML, a key that no verb (in a table:
// that verb) has, a value of the wrong type or outside its bounds. "_" may stand for "-" in keys.
ConfigValues read_config_file(const std::string& path,
                              const Verb& verb,
                              std::span<const Verb> verbs);
// The same for text in memory; `name` stands for the file in errors.
ConfigValues parse_config(std::string_view text,
                          const std::string& name,
                          const Verb& verb,
                          std::span<const Verb> verbs);

}  // namespace longspur::app::cli
