// The decoder as a torch computation: the forward over a packed batch without a cache, with
// autograd. What training runs. Same definition (models/decoder.h), same tensors
// (models/decoder_tensors.h) as inference.
#pragma once

#include <torch/types.h>

#include <string>
#include <vector>

#include "io/files/model_config.h"
#include "models/decoder.h"
#include "models/decoder_tensors.h"

namespace longspur::models {

struct TorchLinear {
  at::Tensor weight;  // [N, K]
  at::Tensor bias;    // [N] or undefined
};

// A parameter under its Hugging Face name: rows [begin, begin + rows) of a stacked leaf.
struct NamedParameter {
  std::string name;
  at::Tensor leaf;
  int64_t begin, rows;

  at::Tensor value() const { return leaf.narrow(0, begin, rows); }
  at::Tensor grad() const;  // undefined before backward
};

class TorchDecoder {
 public:
  // Weights are read as `dtype` onto `device` and require gradients.
  TorchDecoder(const io::ModelConfig& config,
               const DecoderTensors& tensors,
               at::ScalarType dtype,
               at::Device device);

  // tokens: int64 [T]; cu_seqlens: int32 [B + 1] on the CPU. Returns logits [T, V] in the weights'
  // type. Throws UnsupportedError when a sequence is longer than a layer's sliding window.
  at::Tensor forward(const at::Tensor& tokens, const at::Tensor& cu_seqlens) const;

  const std::vector<NamedParameter>& named_parameters() const { return parameters_; }
  std::vector<at::Tensor> leaves() const;  // for an optimiser; each stacked tensor once

 private:
  io::ModelConfig config_;
  DecoderWeights<TorchLinear, at::Tensor> weights_;
  std::vector<NamedParameter> parameters_;
};

}  // namespace longspur::models
