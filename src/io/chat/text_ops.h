// The algorithms behind str's methods, on texts with origin.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "io/chat/budget.h"
#include "io/chat/text.h"

namespace longspur::io::chat {

enum class Side { left, right, both };
// chars: a set of characters, or blanks when it is not given.
Text strip(const Text& text, Side side, const std::optional<Text>& chars = std::nullopt);

// limit < 0: all.
std::vector<Text> split_blanks(Budget& budget, const Text& text, int64_t limit, bool from_right);
std::vector<Text> split(
    Budget& budget, const Text& text, const Text& separator, int64_t limit, bool from_right);
std::vector<Text> split_lines(Budget& budget, const Text& text, bool keep_ends);

Text replace(Budget& budget, const Text& text, const Text& old, const Text& with, int64_t limit);
Text join(Budget& budget, const Text& separator, const std::vector<Text>& parts);
int64_t count_occurrences(Budget& budget, std::string_view text, std::string_view part);
Text pad(Budget& budget, const Text& text, int64_t width, const Text& fill, Side side);

}  // namespace longspur::io::chat
