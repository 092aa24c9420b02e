// JSON files of model folders: size and depth bounded, duplicate keys refused, errors with the
// path.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>

namespace longspur::io {

inline constexpr int64_t kMaxJsonBytes = int64_t(256) << 20;
inline constexpr int kMaxJsonDepth = 64;

// The object in the file. Throws Error when it is missing, too large, too deep, not valid JSON or
// UTF-8, holds a key twice, or is no object.
nlohmann::json read_json_file(const std::string& path);
// The same for text already in memory; `name` stands for it in errors.
nlohmann::json parse_json_object(std::string_view text, const std::string& name);

}  // namespace longspur::io
