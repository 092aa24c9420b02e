// The options that several verbs share, by group. A verb's table is what verb_options() joins: its
// own options, then the groups it names, then the common ones.
#pragma once

#include <initializer_list>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "app/cli/option.h"

namespace longspur::app::cli {

enum class OptionGroup {
  kModel,     // --model
  kEngine,    // device, threads, arithmetic, cache
  kSampling,  // --max-tokens, --temperature, ...
};

// --threads, for verbs that take it without the rest of kEngine.
Option threads_option(const std::string& group);

// `defaults` replaces the default of shared options for this verb.
std::vector<Option> verb_options(
    std::vector<Option> own,
    std::initializer_list<OptionGroup> groups,
    std::initializer_list<std::pair<std::string_view, std::string_view>> defaults = {});

}  // namespace longspur::app::cli
