#include "runtime/cuda_weights.h"

#include <ATen/Functions.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <algorithm>
#include <vector>

#include "base/error.h"
#include "kernels/nvfp4/cuda/matmul.h"
#include "models/decoder_loading.h"
#include "runtime/cuda_memory.h"

namespace longspur::runtime {

namespace {

using models::TensorSource;

class Loader {
 public:
  Loader(const TensorSource& embedding,
         at::ScalarType type,
         at::Device device,
         const std::function<void(int64_t)>& progress)
      : embedding_(embedding.tensor), type_(type), device_(device), progress_(progress) {}

  at::Tensor vector(const TensorSource& source) const {
    if (!source) return {};
    return at::tensor(models::read_vector(source)).to(device_);
  }

  CudaLinear linear(const std::vector<TensorSource>& sources,
                    const std::vector<TensorSource>& biases) {
    CudaLinear result = stacked(sources);
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
  CudaLinear stacked(const std::vector<TensorSource>& sources) {
    CudaLinear result;
    for (const TensorSource& source : sources) result.n += source.n();
    result.k = sources[0].k();
    const bool keeps =
        sources[0].tensor != embedding_ && cuda_keeps_nvfp4(sources, type_ == at::kFloat);
    keeps ? load_nvfp4(sources, result) : load_dense(sources, result);
    return result;
  }

  void load_dense(const std::vector<TensorSource>& sources, CudaLinear& result) {
    const DType as = type_ == at::kFloat ? DType::kF32 : DType::kBF16;
    result.weight = at::empty({result.n, result.k}, at::TensorOptions(type_).device(device_));
    int64_t row = 0;
    for (const TensorSource& source : sources) {
      const models::Rows data = models::read_rows(source, as);
      result.weight.narrow(0, row, data.n)
          .copy_(at::from_blob(const_cast<std::byte*>(data.data), {data.n, data.k}, type_));
      row += data.n;
      report(source);
    }
  }

  // Blocks as they are read to the device, where they are put into the products' order.
  void load_nvfp4(const std::vector<TensorSource>& sources, CudaLinear& result) {
    const auto on_device = at::TensorOptions(device_);
    const int64_t row_bytes = dtype_bytes(DType::kNVFP4, result.k);
    const at::Tensor blocks = at::empty({result.n, row_bytes}, on_device.dtype(at::kByte));
    result.multiplier = at::empty({result.n}, on_device.dtype(at::kFloat));
    int64_t row = 0;
    for (const TensorSource& source : sources) {
      const models::Rows data = models::read_rows(source, DType::kNVFP4);
      blocks.narrow(0, row, data.n)
          .copy_(at::from_blob(const_cast<std::byte*>(data.data), {data.n, row_bytes}, at::kByte));
      result.multiplier.narrow(0, row, data.n).fill_(data.scale);
      row += data.n;
      report(source);
    }
    result.packed =
        at::empty({kernels::nvfp4::packed_bytes(result.n, result.k)}, on_device.dtype(at::kByte));
    const kernels::CudaStatus status = kernels::nvfp4::cuda::pack_blocks(
        blocks.const_data_ptr(), result.n, result.k, result.packed.data_ptr(), stream());
    if (status != nullptr) throw Error(concat("device cuda: nvfp4 weights: ", status));
  }

  void* stream() const {
    return c10::impl::VirtualGuardImpl(device_.type()).getStream(device_).native_handle();
  }

  void report(const TensorSource& source) {
    done_ += source.stored_bytes();
    if (progress_) progress_(done_);
  }

  const io::TensorInfo* embedding_;
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
  Loader loader(tensors.embedding, type, device, progress);
  return models::load_decoder<CudaWeights>(loader, tensors);
}

}  // namespace longspur::runtime
