// What the readers make of a file, for Python tests to compare with other readers' results.
//
//   tensor_probe tensors PATH OUTPUT.safetensors   list as JSON on stdout; values as fp32 in OUTPUT
//   tensor_probe copy PATH OUTPUT.safetensors      the same tensors in their stored types
//   tensor_probe config PATH                       configuration and generation defaults as JSON
//   tensor_probe metadata PATH                     GGUF keys as JSON
//   tensor_probe convert PATH OUTPUT DIALECT       the whole model in another dialect
//
// PATH is a .gguf file, a .safetensors file or a folder of Hugging Face's layout.
#include <cstdio>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "io/files/gguf.h"
#include "io/files/model_config.h"
#include "io/files/model_writer.h"
#include "io/files/safetensors_writer.h"

namespace longspur {
namespace {

using nlohmann::json;

bool is_gguf(const std::string& path) { return path.ends_with(".gguf"); }

std::unique_ptr<io::TensorFile> open(const std::string& path) {
  if (is_gguf(path)) return io::GgufFile::open(path);
  return io::open_safetensors(path);
}

void print(const json& value) { std::printf("%s\n", value.dump().c_str()); }

void tensors(const std::string& path, const std::string& output) {
  const auto file = open(path);
  json list = json::array();
  std::vector<io::TensorToWrite> values;
  std::vector<std::vector<float>> storage;
  for (const io::TensorInfo& tensor : file->tensors()) {
    list.push_back({{"name", tensor.name},
                    {"dtype", dtype_info(tensor.dtype).name},
                    {"shape", tensor.shape},
                    {"bytes", tensor.data.size()}});
    std::vector<float>& floats = storage.emplace_back(size_t(tensor.elements()));
    io::dequantize(tensor.dtype, tensor.data.data(), tensor.elements(), floats.data());
    values.push_back(
        {tensor.name, DType::kF32, tensor.shape, std::as_bytes(std::span<const float>(floats))});
  }
  io::write_safetensors(output, values, {});
  print(list);
}

void copy(const std::string& path, const std::string& output) {
  const auto file = open(path);
  std::vector<io::TensorToWrite> values;
  for (const io::TensorInfo& tensor : file->tensors())
    values.push_back({tensor.name, tensor.dtype, tensor.shape, tensor.data});
  io::write_safetensors(output, values, {{"format", "pt"}, {"source", "tensor_probe"}});
}

json rope_json(const io::RopeScaling& rope) {
  static const std::map<io::RopeScaling::Kind, const char*> kNames = {
      {io::RopeScaling::Kind::kNone, "default"},
      {io::RopeScaling::Kind::kLinear, "linear"},
      {io::RopeScaling::Kind::kDynamic, "dynamic"},
      {io::RopeScaling::Kind::kLlama3, "llama3"},
      {io::RopeScaling::Kind::kYarn, "yarn"}};
  const auto optional = [](const std::optional<double>& value) {
    return value ? json(*value) : json();
  };
  return {{"kind", kNames.at(rope.kind)},
          {"factor", rope.factor},
          {"original_max_position", rope.original_max_position},
          {"low_freq_factor", rope.low_freq_factor},
          {"high_freq_factor", rope.high_freq_factor},
          {"beta_fast", rope.beta_fast},
          {"beta_slow", rope.beta_slow},
          {"attention_factor", optional(rope.attention_factor)},
          {"mscale", optional(rope.mscale)},
          {"mscale_all_dim", optional(rope.mscale_all_dim)},
          {"truncate", rope.truncate}};
}

json config_json(const io::ModelConfig& c) {
  return {{"architecture", io::architecture_name(c.architecture)},
          {"vocab", c.vocab},
          {"hidden", c.hidden},
          {"intermediate", c.intermediate},
          {"layers", c.layers},
          {"heads", c.heads},
          {"kv_heads", c.kv_heads},
          {"head_dim", c.head_dim},
          {"rotary_dim", c.rotary_dim},
          {"max_position", c.max_position},
          {"rms_eps", c.rms_eps},
          {"rope_theta", c.rope_theta},
          {"rope", rope_json(c.rope_scaling)},
          {"tied", c.tied_embeddings},
          {"qkv_bias", c.qkv_bias},
          {"output_bias", c.output_bias},
          {"mlp_bias", c.mlp_bias},
          {"qk_norm", c.qk_norm},
          {"sliding_window", c.sliding_window}};
}

template <class T>
json optional_json(const std::optional<T>& value) {
  return value ? json(*value) : json();
}

json defaults_json(const io::GenerationDefaults& d) {
  return {{"eos_ids", d.eos_ids},
          {"bos_id", optional_json(d.bos_id)},
          {"pad_id", optional_json(d.pad_id)},
          {"temperature", optional_json(d.temperature)},
          {"top_p", optional_json(d.top_p)},
          {"top_k", optional_json(d.top_k)},
          {"repetition_penalty", optional_json(d.repetition_penalty)},
          {"do_sample", optional_json(d.do_sample)}};
}

void config(const std::string& path) {
  if (is_gguf(path)) {
    const auto file = io::GgufFile::open(path);
    return print({{"config", config_json(io::model_config_from_gguf(*file))},
                  {"defaults", defaults_json(io::generation_defaults_from_gguf(*file))}});
  }
  print({{"config", config_json(io::model_config_from_hf(path))},
         {"defaults", defaults_json(io::generation_defaults_from_hf(path))}});
}

void metadata(const std::string& path) {
  const auto file = io::GgufFile::open(path);
  json keys = json::object();
  for (const auto& [key, value] : file->metadata())
    keys[key] = std::visit([](const auto& v) { return json(v); }, value);
  print(keys);
}

void run(const std::vector<std::string>& arguments) {
  const std::string& verb = arguments[0];
  if (verb == "tensors" && arguments.size() == 3) return tensors(arguments[1], arguments[2]);
  if (verb == "copy" && arguments.size() == 3) return copy(arguments[1], arguments[2]);
  if (verb == "config" && arguments.size() == 2) return config(arguments[1]);
  if (verb == "metadata" && arguments.size() == 2) return metadata(arguments[1]);
  if (verb == "convert" && arguments.size() == 4)
    return io::convert_model(arguments[1], arguments[2],
                             {.dialect = io::parse_dialect(arguments[3])});
  throw UsageError(
      "expected tensors PATH OUTPUT, copy PATH OUTPUT, config PATH, metadata PATH or convert PATH "
      "OUTPUT DIALECT");
}

}  // namespace
}  // namespace longspur

int main(int argc, char** argv) {
  try {
    longspur::run(std::vector<std::string>(argv + 1, argv + std::max(argc, 2)));
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "tensor_probe: error: %s\n", error.what());
    return 1;
  }
}
