// A verb of the program: what help says about it, its options, and what it does. Each verb is one
// file in verbs/; verbs/registry.cpp lists them.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "app/cli/option.h"
#include "app/cli/settings.h"

namespace longspur::app::cli {

struct Verb {
  std::string name;
  std::string summary = {};                // one line
  std::string details = {};                // paragraphs, wrapped by help; may be empty
  std::vector<std::string> examples = {};  // command lines
  std::vector<Option> options = {};        // its whole table, see verb_options()
  int (*run)(const Settings&) = nullptr;   // returns the exit code; errors are thrown
  bool hidden = false;                     // left out of help and completion
};

// Every verb, in the order of help.
const std::vector<Verb>& all_verbs();
const Verb* find_verb(std::string_view name);

}  // namespace longspur::app::cli
