// From what the user gave to the token ids of a prompt.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "app/cli/settings.h"
#include "engine/engine.h"

namespace longspur::app::cli {

// --prompt-file, then --prompt; stdin when neither is given. Throws Error when that is empty.
std::string read_prompt(const Settings& settings);

// Raw text: control tokens are read; begins with the model's beginning-of-text token when its files
// ask for one and the text does not hold it already.
std::vector<int32_t> raw_prompt(const engine::Engine& engine, const std::string& text);

// [{"role", "content"}, ...] through the model's chat template; their text stays text.
std::vector<int32_t> chat_prompt(const engine::Engine& engine,
                                 const nlohmann::ordered_json& messages);
// The system message (when not empty) and one user message.
nlohmann::ordered_json single_turn(const std::string& system, const std::string& user);

}  // namespace longspur::app::cli
