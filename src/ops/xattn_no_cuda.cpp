// What a build without CUDA kernels has of its own for CUDA tensors: nothing.
#include "ops/xattn_impl.h"

namespace longspur::ops {

std::span<const XattnImplementation* const> xattn_device_implementations() { return {}; }

}  // namespace longspur::ops
