// decoder_probe FOLDER TOKENS.json OUTPUT.safetensors
// Runs the training forward and backward on one packed batch and writes logits, the mean next-token
// loss and every parameter's gradient, for comparison with transformers
// (tests/python/test_models.py).
#include <ATen/Functions.h>

#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "io/files/model_config.h"
#include "io/files/safetensors_writer.h"
#include "models/torch_decoder.h"

namespace longspur {
namespace {

struct PackedBatch {
  at::Tensor tokens;      // int64 [T]
  at::Tensor cu_seqlens;  // int32 [B + 1]
  at::Tensor inputs;      // int64: rows that have a next token
  at::Tensor targets;     // int64: that token
};

PackedBatch read_batch(const char* path) {
  const auto lists =
      nlohmann::json::parse(std::ifstream(path)).get<std::vector<std::vector<int64_t>>>();
  std::vector<int64_t> tokens, inputs, targets;
  std::vector<int32_t> cu_seqlens = {0};
  for (const auto& list : lists) {
    for (size_t i = 0; i < list.size(); ++i) {
      if (i > 0) {
        inputs.push_back(int64_t(tokens.size()) - 1);
        targets.push_back(list[i]);
      }
      tokens.push_back(list[i]);
    }
    cu_seqlens.push_back(int32_t(tokens.size()));
  }
  return {at::tensor(tokens), at::tensor(cu_seqlens), at::tensor(inputs), at::tensor(targets)};
}

void run(const char* folder, const char* tokens_path, const char* output) {
  const io::ModelConfig config = io::model_config_from_hf(folder);
  const auto file = io::open_safetensors(folder);
  const models::TorchDecoder decoder(config, models::find_decoder_tensors(*file, config),
                                     at::kFloat, at::kCPU);
  const PackedBatch batch = read_batch(tokens_path);
  const at::Tensor logits = decoder.forward(batch.tokens, batch.cu_seqlens);
  const at::Tensor loss =
      at::cross_entropy_loss(logits.index_select(0, batch.inputs), batch.targets);
  loss.backward();

  std::vector<io::TensorToWrite> tensors;
  std::vector<at::Tensor> keep;
  const auto add = [&](const std::string& name, const at::Tensor& value) {
    const at::Tensor dense = keep.emplace_back(value.detach().contiguous());
    tensors.push_back({name,
                       DType::kF32,
                       dense.sizes().vec(),
                       {static_cast<const std::byte*>(dense.data_ptr()), size_t(dense.nbytes())}});
  };
  add("logits", logits);
  add("loss", loss);
  for (const auto& parameter : decoder.named_parameters())
    add("grad." + parameter.name, parameter.grad());
  io::write_safetensors(output, tensors, {});
}

}  // namespace
}  // namespace longspur

int main(int argc, char** argv) {
  if (argc != 4) {
    std::fprintf(stderr, "usage: decoder_probe FOLDER TOKENS.json OUTPUT.safetensors\n");
    return 2;
  }
  try {
    longspur::run(argv[1], argv[2], argv[3]);
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "decoder_probe: error: %s\n", error.what());
    return 1;
  }
}
