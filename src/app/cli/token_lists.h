// Token ids written as JSON.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace longspur::app::cli {

// "[1, 2, 3]": may be empty. Throws Error that begins with `name` on anything that is not a list of
// integers in [0, vocab).
std::vector<int32_t> parse_token_list(const std::string& text,
                                      const std::string& name,
                                      int64_t vocab);

// "[[1, 2], [3]]": at least one list, none of them empty or longer than `longest`.
std::vector<std::vector<int32_t>> parse_token_lists(const std::string& text,
                                                    const std::string& name,
                                                    int64_t vocab,
                                                    int64_t longest);

}  // namespace longspur::app::cli
