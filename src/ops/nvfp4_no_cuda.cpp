// What a build without CUDA kernels has of its own for CUDA tensors: nothing.
#include "ops/nvfp4_impl.h"

namespace longspur::ops {

std::span<const Nvfp4Implementation* const> nvfp4_device_implementations() { return {}; }
std::span<const Nvfp4LinearImplementation* const> nvfp4_device_linear_implementations() {
  return {};
}

}  // namespace longspur::ops
