// A folder of three files, separated by the byte 0x1e in the input: config.json,
// hf_quant_config.json (empty: none) and model.safetensors. Opened as a model, its rows read in
// every type; then the matrices once more as the converter reads them.
#include <cstdint>
#include <filesystem>

#include "fuzz/memory_file.h"
#include "fuzz/read_tensors.h"
#include "io/files/model_config.h"
#include "io/files/nvfp4.h"
#include "models/decoder_tensors.h"

namespace {

using namespace longspur;
namespace fs = std::filesystem;

constexpr char kSeparator = '\x1e';

class Folder {
 public:
  Folder() {
    std::string pattern = (fs::temp_directory_path() / "longspur-fuzz-XXXXXX").string();
    path_ = mkdtemp(pattern.data());
    fs::create_symlink(config.path(), path_ / "config.json");
    fs::create_symlink(weights.path(), path_ / "model.safetensors");
  }
  ~Folder() {
    std::error_code error;
    fs::remove_all(path_, error);
  }
  std::string path() const { return path_.string(); }

  // A file that is there only when the input has one.
  void set_quant_config(std::string_view text) const {
    std::error_code error;
    const fs::path link = path_ / "hf_quant_config.json";
    fs::remove(link, error);
    quant_config.assign(text);
    if (!text.empty()) fs::create_symlink(quant_config.path(), link);
  }

  fuzz::MemoryFile config{"config"}, quant_config{"quant_config"}, weights{"weights"};

 private:
  fs::path path_;
};

std::string_view next_part(std::string_view& text) {
  const size_t end = std::min(text.find(kSeparator), text.size());
  const std::string_view part = text.substr(0, end);
  text.remove_prefix(std::min(end + 1, text.size()));
  return part;
}

void read_rows(const models::TensorSource& source) {
  if (!source) return;
  const bool whole = source.k() % dtype_info(DType::kNVFP4).block == 0;
  try {
    const models::Rows rows = models::read_rows(source, DType::kF32);
    fuzz::promise(rows.n == source.n() && rows.k == source.k());
    models::read_rows(source, DType::kBF16);
    if (source.nvfp4 && whole) {
      const models::Rows blocks = models::read_rows(source, DType::kNVFP4);
      fuzz::promise(blocks.scale > 0.0f && blocks.scale * 6.0f <= io::kLargestWeight);
    }
  } catch (const Error&) {
  }
}

void read_model(const std::string& folder) {
  const io::ModelConfig config = io::model_config_from_hf(folder);
  const auto file = io::open_safetensors(folder);
  for (const io::TensorInfo& tensor : file->tensors()) {
    const size_t dot = tensor.name.rfind('.');
    const std::string name = tensor.name.substr(0, dot == std::string::npos ? 0 : dot) + ".weight";
    try {
      const auto stored = io::find_nvfp4(*file, name, config.quantization.fouroversix_top);
      if (stored) fuzz::promise(io::read_nvfp4(*stored, name).rows == stored->rows);
    } catch (const Error&) {
    }
  }
  const models::DecoderTensors tensors = models::find_decoder_tensors(*file, config);
  read_rows(tensors.embedding);
  for (const models::LayerTensors& layer : tensors.layers)
    for (const auto* source :
         {&layer.q, &layer.k, &layer.v, &layer.output, &layer.gate, &layer.down})
      read_rows(*source);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const Folder folder;
  std::string_view text(reinterpret_cast<const char*>(data), size);
  folder.config.assign(next_part(text));
  folder.set_quant_config(next_part(text));
  folder.weights.assign(text);
  try {
    read_model(folder.path());
  } catch (const Error&) {
  }
  return 0;
}
