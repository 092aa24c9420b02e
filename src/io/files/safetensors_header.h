// The JSON header of a safetensors file, {name: {dtype, shape, data_offsets}, "__metadata__":
// {..}}.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace longspur::io {

struct SafetensorsEntry {
  std::string name, dtype;
  std::vector<int64_t> shape, offsets;  // offsets: as many as the file gives, two at most
};

// Entries in file order. Read by a SAX handler that refuses what a DOM would repair: duplicate
// fields, unknown fields, wrong types, depth. `path` names the file in errors.
std::vector<SafetensorsEntry> parse_safetensors_header(std::string_view text,
                                                       const std::string& path);

}  // namespace longspur::io
