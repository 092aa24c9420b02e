// Writes Hugging Face folders of llama models with random weights, bf16 or NVFP4, for tests and
// benchmarks that need a model of a certain shape and no particular words.
#pragma once

#include <cstdint>
#include <string>

namespace longspur::testing {

struct RandomModelShape {
  int64_t vocab = 0, hidden = 0, intermediate = 0, layers = 0, heads = 0, kv_heads = 0,
          head_dim = 0;
  int64_t max_position = 8192;
  bool tied_embeddings = false;
  double spread = 0.02;  // standard deviation of the weights; norms are 1
  bool nvfp4 = false;    // the layers' matrices in ModelOpt's NVFP4, K a multiple of 16
};

// config.json and model.safetensors in `folder`, which is made when missing.
void write_random_model(const std::string& folder, const RandomModelShape& shape, uint64_t seed);

}  // namespace longspur::testing
