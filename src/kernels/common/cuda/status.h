// Result of a kernel launch for callers that see no CUDA header: nullptr, or the error's text.
#pragma once

namespace longspur::kernels {

using CudaStatus = const char*;

}  // namespace longspur::kernels
