// Finds the files behind a model argument. Local only: nothing is ever downloaded at run time.
#include <unistd.h>

#include <cstdlib>
#include <filesystem>

#include "base/error.h"
#include "engine/engine.h"
#include "engine/machine.h"

namespace longspur::engine {

namespace fs = std::filesystem;

namespace {

struct KnownModel {
  const char* name;
  const char* file;
};
constexpr KnownModel kKnownModels[] = {{"smollm2", "smollm2-135m-instruct-q4_1.gguf"}};

// Folders that may hold downloaded models, most specific first.
std::vector<fs::path> model_folders() {
  std::vector<fs::path> folders;
  if (const char* folder = std::getenv("LONGSPUR_MODELS"); folder != nullptr && *folder != '\0') {
    folders.emplace_back(folder);
  }
  if (const char* home = std::getenv("HOME"); home != nullptr && *home != '\0') {
    folders.push_back(fs::path(home) / ".cache" / "longspur" / "models");
  }
  // A build tree's binary stands in <source>/build/<preset>/bin; set-up downloads to
  // <source>/.cache.
  std::error_code error;
  const fs::path binary = fs::read_symlink("/proc/self/exe", error);
  if (!error) {
    const fs::path source = binary.parent_path().parent_path().parent_path().parent_path();
    folders.push_back(source / ".cache" / "models");
    folders.push_back(source / ".cache");
  }
  return folders;
}

KnownModelFile find_known(const KnownModel& model) {
  KnownModelFile found{model.name, model.file, "", {}};
  for (const fs::path& folder : model_folders()) {
    const fs::path path = folder / model.file;
    std::error_code error;
    if (found.path.empty() && fs::is_regular_file(path, error)) found.path = path.string();
    found.looked.push_back(folder.string());
  }
  return found;
}

ModelFiles known_model(const KnownModel& model) {
  const KnownModelFile found = find_known(model);
  if (!found.path.empty()) return {ModelFiles::Kind::kGguf, found.path};
  std::string looked;
  for (const std::string& folder : found.looked)
    looked += concat(looked.empty() ? "" : ", ", folder);
  throw Error(concat("model '", model.name, "': ", model.file, " not found in ", looked,
                     "; run `make setup` or set LONGSPUR_MODELS"));
}

}  // namespace

std::vector<KnownModelFile> known_models() {
  std::vector<KnownModelFile> found;
  for (const KnownModel& model : kKnownModels) found.push_back(find_known(model));
  return found;
}

ModelFiles resolve_model(const std::string& argument) {
  require(!argument.empty(),
          "model: found an empty name, expected a folder, a .gguf file or a known name");
  std::error_code error;
  const fs::path path(argument);
  const fs::file_status status = fs::status(path, error);
  if (fs::is_directory(status)) return {ModelFiles::Kind::kHfFolder, argument};
  if (fs::is_regular_file(status)) {
    require(path.extension() != ".safetensors", "model '", argument,
            "': found a .safetensors file, expected the folder that also holds its config.json");
    return {ModelFiles::Kind::kGguf, argument};
  }
  for (const KnownModel& model : kKnownModels) {
    if (argument == model.name) return known_model(model);
  }
  throw Error(
      concat("model '", argument,
             "': not found; expected a Hugging Face folder, a .gguf file or the name smollm2"));
}

}  // namespace longspur::engine
