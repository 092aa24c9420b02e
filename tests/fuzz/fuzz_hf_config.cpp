// A folder of three JSON files, separated by the byte 0x1e in the input: config.json,
// generation_config.json and model.safetensors.index.json.
#include <cstdint>
#include <cstdlib>
#include <filesystem>

#include "fuzz/memory_file.h"
#include "fuzz/read_tensors.h"
#include "io/files/model_config.h"

namespace {

using namespace longspur;
namespace fs = std::filesystem;

class Folder {
 public:
  Folder() {
    std::string pattern = (fs::temp_directory_path() / "longspur-fuzz-XXXXXX").string();
    path_ = mkdtemp(pattern.data());
    fs::create_symlink(config.path(), path_ / "config.json");
    fs::create_symlink(generation.path(), path_ / "generation_config.json");
    fs::create_symlink(index.path(), path_ / "model.safetensors.index.json");
  }
  ~Folder() {
    std::error_code error;
    fs::remove_all(path_, error);
  }
  std::string path() const { return path_.string(); }

  fuzz::MemoryFile config{"config"}, generation{"generation"}, index{"index"};

 private:
  fs::path path_;
};

std::string_view next_part(std::string_view& text) {
  const size_t end = std::min(text.find('\x1e'), text.size());
  const std::string_view part = text.substr(0, end);
  text.remove_prefix(std::min(end + 1, text.size()));
  return part;
}

template <class F>
void refused_or(F run) {
  try {
    run();
  } catch (const Error&) {
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const Folder folder;
  std::string_view text(reinterpret_cast<const char*>(data), size);
  folder.config.assign(next_part(text));
  folder.generation.assign(next_part(text));
  folder.index.assign(text);
  refused_or([] {
    const io::ModelConfig config = io::model_config_from_hf(folder.path());
    fuzz::promise(config.layers >= 1 && int64_t(config.sliding_window.size()) == config.layers);
    fuzz::promise(config.kv_heads >= 1 && config.heads % config.kv_heads == 0);
    fuzz::promise(config.head_dim % 2 == 0 && config.rotary_dim <= config.head_dim);
  });
  refused_or([] {
    for (const int32_t id : io::generation_defaults_from_hf(folder.path()).eos_ids)
      fuzz::promise(id >= 0);
  });
  refused_or([] { io::open_safetensors(folder.path()); });
  return 0;
}
