// What stays of a source's files within one kind of model: folder to folder, GGUF to GGUF; and the
// configuration of the quantisation in each dialect.
#include "io/files/model_files.h"

#include <algorithm>
#include <array>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "base/error.h"
#include "io/files/json_file.h"
#include "io/files/quantization_json.h"

namespace longspur::io {

namespace fs = std::filesystem;
using nlohmann::json;

namespace {

// Files of a folder that go along: text beside the weights.
bool goes_along(const fs::path& path) {
  static constexpr std::array kKinds = {".json", ".jinja", ".txt", ".model", ".md", ".tiktoken"};
  static constexpr std::array kReplaced = {"config.json", "hf_quant_config.json"};
  const std::string name = path.filename().string(), kind = path.extension().string();
  if (name.starts_with('.') || name.ends_with(".safetensors.index.json") ||
      name.ends_with(".bin.index.json"))
    return false;
  if (std::find(kReplaced.begin(), kReplaced.end(), name) != kReplaced.end()) return false;
  if (name.starts_with("LICENSE") || name.starts_with("NOTICE")) return true;
  return std::find(kKinds.begin(), kKinds.end(), kind) != kKinds.end();
}

std::string read_text(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  require(bool(file) || file.eof(), path.string(), ": cannot be read");
  return text.str();
}

}  // namespace

void write_folder_files(const std::string& source,
                        const QuantizedModules& modules,
                        const WriteFile& write) {
  std::vector<fs::path> files;
  for (const fs::directory_entry& entry : fs::directory_iterator(source))
    if (entry.is_regular_file() && goes_along(entry.path())) files.push_back(entry.path());
  std::sort(files.begin(), files.end());
  for (const fs::path& path : files) write(path.filename().string(), read_text(path));
  json config = read_json_file((fs::path(source) / "config.json").string());
  write_config(std::move(config), modules, write);
}

void add_keys(const GgufFile& source, const QuantizedModules& modules, GgufHeader& header) {
  constexpr std::string_view kFileType = "general.file_type";
  for (const GgufFile::StoredKey& key : source.stored_keys()) {
    if (key.key == "general.alignment" || key.key.starts_with("split.")) continue;
    if (key.key == kFileType && modules.any) continue;
    header.stored(key.key, key.bytes);
  }
  if (modules.any) header.integer(kFileType, kGgufNvfp4FileType);
}

}  // namespace longspur::io
