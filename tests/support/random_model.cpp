#include "random_model.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <thread>
#include <vector>

#include "base/error.h"
#include "base/half.h"
#include "io/files/safetensors_writer.h"

namespace longspur::testing {

namespace {

namespace fs = std::filesystem;

void write_config(const fs::path& folder, const RandomModelShape& shape) {
  const nlohmann::json config = {{"architectures", {"LlamaForCausalLM"}},
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
  std::ofstream file(folder / "config.json");
  file << config.dump(2) << '\n';
  require(bool(file), (folder / "config.json").string(), ": cannot be written");
}

std::vector<io::TensorToWrite> tensors_of(const RandomModelShape& s) {
  std::vector<io::TensorToWrite> tensors;
  const auto add = [&](const std::string& name, std::vector<int64_t> shape) {
    tensors.push_back({name + ".weight", DType::kBF16, std::move(shape), {}});
  };
  add("model.embed_tokens", {s.vocab, s.hidden});
  if (!s.tied_embeddings) add("lm_head", {s.vocab, s.hidden});
  add("model.norm", {s.hidden});
  for (int64_t i = 0; i < s.layers; ++i) {
    const std::string layer = concat("model.layers.", i, ".");
    add(layer + "input_layernorm", {s.hidden});
    add(layer + "self_attn.q_proj", {s.heads * s.head_dim, s.hidden});
    add(layer + "self_attn.k_proj", {s.kv_heads * s.head_dim, s.hidden});
    add(layer + "self_attn.v_proj", {s.kv_heads * s.head_dim, s.hidden});
    add(layer + "self_attn.o_proj", {s.hidden, s.heads * s.head_dim});
    add(layer + "post_attention_layernorm", {s.hidden});
    add(layer + "mlp.gate_proj", {s.intermediate, s.hidden});
    add(layer + "mlp.up_proj", {s.intermediate, s.hidden});
    add(layer + "mlp.down_proj", {s.hidden, s.intermediate});
  }
  return tensors;
}

uint64_t mix(uint64_t x) {  // splitmix64's finaliser
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

// Uniform numbers around 0; element `first + i` depends on its place alone.
void fill(uint16_t* values, int64_t count, int64_t first, uint64_t seed, float spread) {
  const float width = spread * std::sqrt(12.0f);
  for (int64_t i = 0; i < count; ++i) {
    const uint64_t bits = mix(seed + uint64_t(first + i) * 0x9e3779b97f4a7c15u);
    values[i] = float_to_bf16((float(bits >> 40) * 0x1p-24f - 0.5f) * width);
  }
}

void fill_in_parallel(std::vector<uint16_t>& values, int64_t first, uint64_t seed, float spread) {
  const auto workers = int64_t(std::max(1u, std::thread::hardware_concurrency()));
  const auto count = int64_t(values.size());
  std::vector<std::jthread> threads;
  for (int64_t w = 0; w < workers; ++w) {
    const int64_t begin = count * w / workers, end = count * (w + 1) / workers;
    threads.emplace_back(
        [&, begin, end] { fill(values.data() + begin, end - begin, first + begin, seed, spread); });
  }
}

}  // namespace

void write_random_model(const std::string& folder, const RandomModelShape& shape, uint64_t seed) {
  constexpr int64_t kChunk = int64_t(32) << 20;  // elements
  fs::create_directories(folder);
  write_config(folder, shape);
  const std::vector<io::TensorToWrite> tensors = tensors_of(shape);
  io::SafetensorsWriter writer((fs::path(folder) / "model.safetensors").string(), tensors,
                               {{"format", "pt"}});
  std::vector<uint16_t> values;
  for (size_t t = 0; t < tensors.size(); ++t) {
    int64_t count = 1;
    for (const int64_t n : tensors[t].shape) count *= n;
    for (int64_t first = 0; first < count; first += kChunk) {
      values.assign(size_t(std::min(kChunk, count - first)), float_to_bf16(1.0f));
      if (tensors[t].shape.size() > 1)
        fill_in_parallel(values, first, mix(seed * 1000003u + t), float(shape.spread));
      writer.append(std::as_bytes(std::span(values)));
    }
  }
  writer.commit();
}

}  // namespace longspur::testing
