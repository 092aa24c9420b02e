// Draws tokens on the device for the CUDA executor: packs the requests, launches, unpacks.
#pragma once

#include <ATen/core/Tensor.h>

#include <span>

#include "kernels/sampling/cuda/pack.h"
#include "runtime/cuda_transfer.h"
#include "runtime/executor.h"

namespace longspur::runtime {

class CudaSampler {
 public:
  CudaSampler(at::Device device, int64_t vocab) : vocab_(vocab), requests_(device), rows_(device) {}

  // From logits [args.size(), V] on the device; `stream` is torch's current one, and is waited for.
  void sample(const float* logits,
              std::span<const kernels::sampling::SampleArgs> args,
              std::span<Draw> draws,
              const c10::Stream& stream);

 private:
  int64_t vocab_;
  kernels::sampling::cuda::Packed packed_;
  CudaTransfer requests_, rows_;
  at::Tensor adjusted_, counts_;  // [kLogitRows, V], made when logits are first edited
};

}  // namespace longspur::runtime
