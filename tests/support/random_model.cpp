#include "random_model.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <span>
#include <thread>
#include <vector>

#include "base/error.h"
#include "base/half.h"
#include "io/files/safetensors_writer.h"

namespace longspur::testing {

namespace {

namespace fs = std::filesystem;

void write_config(const fs::path& folder, const RandomModelShape& shape) {
  nlohmann::json config = {{"architectures", {"LlamaForCausalLM"}},
                           {"model_type", "llama"},
                           {"vocab_size", shape.vocab},
                           {"hidden_size", shape.hidden},
                           {"intermediate_size", shape.intermediate},
                           {"num_hidden_layers", shape.layers},
                           {"num_attention_heads", shape.heads},
                           {"num_key_value_heads", shape.kv_heads},
                           {"head_dim", shape.head_dim},
                           {"max_position_embeddings", shape.max_position},
                           {"rms_norm_eps", 1e-5},
                           {"rope_theta", 500000.0},
                           {"tie_word_embeddings", shape.tied_embeddings}};
  if (shape.nvfp4) {
    config["quantization_config"] = {
        {"quant_method", "modelopt"}, {"quant_algo", "NVFP4"}, {"group_size", 16}};
  }
  std::ofstream file(folder / "config.json");
  file << config.dump(2) << '\n';
  require(bool(file), (folder / "config.json").string(), ": cannot be written");
}

std::vector<io::TensorToWrite> tensors_of(const RandomModelShape& s) {
  std::vector<io::TensorToWrite> tensors;
  const auto add = [&](const std::string& name, std::vector<int64_t> shape) {
    tensors.push_back({name + ".weight", DType::kBF16, std::move(shape), {}});
  };
  const auto matrix = [&](const std::string& name, int64_t n, int64_t k) {
    if (!s.nvfp4) return add(name, {n, k});
    tensors.push_back({name + ".weight", DType::kU8, {n, k / 2}, {}});
    tensors.push_back({name + ".weight_scale", DType::kF8E4M3, {n, k / 16}, {}});
    tensors.push_back({name + ".weight_scale_2", DType::kF32, {}, {}});
  };
  add("model.embed_tokens", {s.vocab, s.hidden});
  if (!s.tied_embeddings) add("lm_head", {s.vocab, s.hidden});
  add("model.norm", {s.hidden});
  for (int64_t i = 0; i < s.layers; ++i) {
    const std::string layer = concat("model.layers.", i, ".");
    add(layer + "input_layernorm", {s.hidden});
    matrix(layer + "self_attn.q_proj", s.heads * s.head_dim, s.hidden);
    matrix(layer + "self_attn.k_proj", s.kv_heads * s.head_dim, s.hidden);
    matrix(layer + "self_attn.v_proj", s.kv_heads * s.head_dim, s.hidden);
    matrix(layer + "self_attn.o_proj", s.hidden, s.heads * s.head_dim);
    add(layer + "post_attention_layernorm", {s.hidden});
    matrix(layer + "mlp.gate_proj", s.intermediate, s.hidden);
    matrix(layer + "mlp.up_proj", s.intermediate, s.hidden);
    matrix(layer + "mlp.down_proj", s.hidden, s.intermediate);
  }
  return tensors;
}

uint64_t mix(uint64_t x) {  // splitmix64's finaliser
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

// Bytes of a tensor from `first` on; each depends on its place alone.
void fill(std::span<std::byte> bytes, DType type, int64_t first, uint64_t seed, float spread) {
  const float width = spread * std::sqrt(12.0f);
  const auto random = [&](int64_t i) {
    return mix(seed + uint64_t(first + i) * 0x9e3779b97f4a7c15u);
  };
  if (type == DType::kBF16) {  // uniform around 0
    for (int64_t i = 0; i < int64_t(bytes.size()) / 2; ++i) {
      const uint16_t value = float_to_bf16((float(random(i) >> 40) * 0x1p-24f - 0.5f) * width);
      std::memcpy(bytes.data() + 2 * i, &value, 2);
    }
    return;
  }
  // Codes of any value; block scales of 0.5 to 1.9.
  for (int64_t i = 0; i < int64_t(bytes.size()); ++i)
    bytes[size_t(i)] = std::byte(type == DType::kU8 ? random(i) >> 56 : 0x30 + random(i) % 16);
}

void fill_in_parallel(
    std::span<std::byte> bytes, DType type, int64_t first, uint64_t seed, float spread) {
  const auto workers = int64_t(std::max(1u, std::thread::hardware_concurrency()));
  const int64_t size = dtype_bytes(type, 1), count = int64_t(bytes.size()) / size;
  std::vector<std::jthread> threads;
  for (int64_t w = 0; w < workers; ++w) {
    const int64_t begin = count * w / workers, end = count * (w + 1) / workers;
    threads.emplace_back([=] {
      fill(bytes.subspan(size_t(begin * size), size_t((end - begin) * size)), type, first + begin,
           seed, spread);
    });
  }
}

// The multiplier that gives NVFP4 weights the wanted spread: codes and scales as above have a root
// mean square of 2.94 * 1.12.
float multiplier_of(float spread, size_t tensor) {
  return spread / 3.3f * (1.0f + 0.1f * float(tensor % 3));
}

void fill_constant(std::span<std::byte> bytes, DType type, float value) {
  const uint16_t half = float_to_bf16(value);
  const int64_t size = dtype_bytes(type, 1);
  const void* from = type == DType::kBF16 ? static_cast<const void*>(&half) : &value;
  for (int64_t at = 0; at < int64_t(bytes.size()); at += size)
    std::memcpy(bytes.data() + at, from, size_t(size));
}

}  // namespace

void write_random_model(const std::string& folder, const RandomModelShape& shape, uint64_t seed) {
  constexpr int64_t kChunk = int64_t(32) << 20;  // elements
  fs::create_directories(folder);
  write_config(folder, shape);
  const std::vector<io::TensorToWrite> tensors = tensors_of(shape);
  io::SafetensorsWriter writer((fs::path(folder) / "model.safetensors").string(), tensors,
                               {{"format", "pt"}});
  std::vector<std::byte> bytes;
  for (size_t t = 0; t < tensors.size(); ++t) {
    const auto& [name, type, dims, data] = tensors[t];
    int64_t count = 1;
    for (const int64_t n : dims) count *= n;
    for (int64_t first = 0; first < count; first += kChunk) {
      bytes.resize(size_t(dtype_bytes(type, std::min(kChunk, count - first))));
      if (dims.size() > 1)
        fill_in_parallel(bytes, type, first, mix(seed * 1000003u + t), float(shape.spread));
      else
        fill_constant(bytes, type, dims.empty() ? multiplier_of(float(shape.spread), t) : 1.0f);
      writer.append(bytes);
    }
  }
  writer.commit();
}

}  // namespace longspur::testing
