// Lists of numbers in one option's text.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace longspur::app::cli {

// "512,4096" -> numbers of at least `least`, rising, each once. Throws UsageError naming `flag`.
std::vector<int64_t> parse_number_list(const std::string& flag,
                                       const std::string& text,
                                       int64_t least);

}  // namespace longspur::app::cli
