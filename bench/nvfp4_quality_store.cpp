#include "nvfp4_quality_store.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "base/error.h"
#include "base/half.h"
#include "io/files/safetensors_writer.h"
#include "io/files/tensor_file.h"

namespace longspur::bench {

namespace fs = std::filesystem;
using quant::ConvertedLayer;

namespace {

template <class T>
std::span<const std::byte> bytes_of(const std::vector<T>& values) {
  return std::as_bytes(std::span<const T>(values));
}

class Collector {
 public:
  template <class T>
  void add(const std::string& name, DType dtype, const std::vector<T>& values) {
    if (values.empty()) return;
    tensors_.push_back({name, dtype, {int64_t(values.size())}, bytes_of(values)});
  }
  void matrix(const std::string& name, const quant::ConvertedMatrix& matrix) {
    if (matrix.kept) return;
    add(name + ".codes", DType::kU8, matrix.nvfp4.codes);
    add(name + ".scales", DType::kU8, matrix.nvfp4.scales);
    tensors_.push_back({name + ".multiplier",
                        DType::kF32,
                        {1},
                        std::as_bytes(std::span<const float>(&matrix.nvfp4.multiplier, 1))});
  }
  const std::vector<io::TensorToWrite>& tensors() const { return tensors_; }

 private:
  std::vector<io::TensorToWrite> tensors_;
};

template <class T>
std::vector<T> read(const io::TensorFile& file, const std::string& name) {
  const io::TensorInfo* tensor = file.find(name);
  if (tensor == nullptr) return {};
  std::vector<T> values(tensor->data.size() / sizeof(T));
  std::memcpy(values.data(), tensor->data.data(), values.size() * sizeof(T));
  return values;
}

ConvertedLayer read_layer(const io::TensorFile& file, const std::string& prefix) {
  ConvertedLayer layer;
  layer.attn_norm = read<float>(file, prefix + "attn_norm");
  layer.ffn_norm = read<float>(file, prefix + "ffn_norm");
  layer.q_norm = read<float>(file, prefix + "q_norm");
  layer.k_norm = read<float>(file, prefix + "k_norm");
  for (size_t role = 0; role < quant::kRoles; ++role) {
    const std::string name = concat(prefix, role);
    layer.bias[role] = read<float>(file, name + ".bias");
    quant::ConvertedMatrix& matrix = layer.linear[role];
    matrix.nvfp4.codes = read<uint8_t>(file, name + ".codes");
    matrix.nvfp4.scales = read<uint8_t>(file, name + ".scales");
    matrix.kept = matrix.nvfp4.codes.empty();
    if (!matrix.kept) matrix.nvfp4.multiplier = read<float>(file, name + ".multiplier").at(0);
  }
  return layer;
}

}  // namespace

void save_converted(const std::string& path, const ConvertedModel& model) {
  Collector collector;
  for (size_t i = 0; i < model.size(); ++i) {
    const ConvertedLayer& layer = model[i];
    const std::string prefix = concat(i, ".");
    collector.add(prefix + "attn_norm", DType::kF32, layer.attn_norm);
    collector.add(prefix + "ffn_norm", DType::kF32, layer.ffn_norm);
    collector.add(prefix + "q_norm", DType::kF32, layer.q_norm);
    collector.add(prefix + "k_norm", DType::kF32, layer.k_norm);
    for (size_t role = 0; role < quant::kRoles; ++role) {
      collector.matrix(concat(prefix, role), layer.linear[role]);
      collector.add(concat(prefix, role, ".bias"), DType::kF32, layer.bias[role]);
    }
  }
  fs::create_directories(fs::path(path).parent_path());
  io::write_safetensors(path, collector.tensors(), {{"layers", concat(model.size())}});
}

std::optional<ConvertedModel> load_converted(const std::string& path) {
  if (!fs::is_regular_file(path)) return std::nullopt;
  const auto file = io::open_safetensors(path);
  ConvertedModel model;
  while (file->find(concat(model.size(), ".attn_norm")) != nullptr)
    model.push_back(read_layer(*file, concat(model.size(), ".")));
  return model;
}

void round_q8_0(quant::Matrix& matrix) {
  constexpr int64_t kBlock = 32;
  for (int64_t at = 0; at < int64_t(matrix.values.size()); at += kBlock) {
    float* x = matrix.values.data() + at;
    const int64_t n = std::min(kBlock, int64_t(matrix.values.size()) - at);
    float largest = 0.0f;
    for (int64_t i = 0; i < n; ++i) largest = std::max(largest, std::abs(x[i]));
    const float exact = largest / 127.0f, stored = fp16_to_float(float_to_fp16(exact));
    for (int64_t i = 0; i < n && exact > 0; ++i) x[i] = std::round(x[i] / exact) * stored;
  }
}

quant::LayerWeights weights_of(const ConvertedLayer& layer,
                               const quant::LayerWeights& original,
                               ThreadPool& pool) {
  ConvertedLayer copy = layer;
  for (size_t role = 0; role < quant::kRoles; ++role) {
    quant::ConvertedMatrix& matrix = copy.linear[role];
    matrix.nvfp4.n = original.linear[role].rows;
    matrix.nvfp4.k = original.linear[role].width;
    if (!matrix.kept) continue;
    matrix.values = original.linear[role];
    round_q8_0(matrix.values);
  }
  return quant::read_back(copy, pool);
}

nlohmann::ordered_json read_results(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return nlohmann::ordered_json::object();
  return nlohmann::ordered_json::parse(file);
}

void write_results(const std::string& path, const nlohmann::ordered_json& results) {
  const std::string temporary = path + ".new";
  {
    std::ofstream file(temporary, std::ios::binary | std::ios::trunc);
    file << results.dump(1) << "\n";
    require(bool(file), temporary, ": cannot be written");
  }
  fs::rename(temporary, path);
}

}  // namespace longspur::bench
