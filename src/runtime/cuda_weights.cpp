#include "runtime/cuda_weights.h"

#include <ATen/Functions.h>

#include <algorithm>
#include <vector>

#include "models/decoder_loading.h"

namespace longspur::runtime {

namespace {

using models::TensorSource;

class Loader {
 public:
  Loader(at::ScalarType type, at::Device device, const std::function<void(int64_t)>& progress)
      : type_(type), device_(device), progress_(progress) {}

  at::Tensor vector(const TensorSource& source) const {
    if (!source) return {};
    return at::tensor(models::read_vector(source)).to(device_);
  }

  CudaLinear linear(const std::vector<TensorSource>& sources,
                    const std::vector<TensorSource>& biases) {
    CudaLinear result{stacked(sources), {}};
    if (std::none_of(biases.begin(), biases.end(), [](const auto& b) { return bool(b); }))
      return result;
    std::vector<at::Tensor> parts;
    for (size_t i = 0; i < sources.size(); ++i) {
      parts.push_back(
          biases[i] ? vector(biases[i])
                    : at::zeros({sources[i].n()}, at::TensorOptions(at::kFloat).device(device_)));
    }
    result.bias = at::cat(parts);
    return result;
  }

 private:
  at::Tensor stacked(const std::vector<TensorSource>& sources) {
    const DType as = type_ == at::kFloat ? DType::kF32 : DType::kBF16;
    int64_t rows = 0;
    for (const TensorSource& source : sources) rows += source.n();
    const at::Tensor result =
        at::empty({rows, sources[0].k()}, at::TensorOptions(type_).device(device_));
    int64_t at_row = 0;
    for (const TensorSource& source : sources) {
      const models::Rows data = models::read_rows(source, as);
      const at::Tensor host =
          at::from_blob(const_cast<std::byte*>(data.data), {data.n, data.k}, type_);
      result.narrow(0, at_row, data.n).copy_(host);
      at_row += data.n;
      done_ += source.stored_bytes();
      if (progress_) progress_(done_);
    }
    return result;
  }

  at::ScalarType type_;
  at::Device device_;
  const std::function<void(int64_t)>& progress_;
  int64_t done_ = 0;
};

}  // namespace

CudaWeights load_cuda_weights(const models::DecoderTensors& tensors,
                              at::ScalarType type,
                              at::Device device,
                              const std::function<void(int64_t)>& progress) {
  Loader loader(type, device, progress);
  return models::load_decoder<CudaWeights>(loader, tensors);
}

}  // namespace longspur::runtime
