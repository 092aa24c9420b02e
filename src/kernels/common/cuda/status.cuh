// To be called right after a launch: turns a launch error into the text that callers get.
#pragma once

#include <cuda_runtime.h>

#include "kernels/common/cuda/status.h"

namespace longspur::kernels {

inline CudaStatus launch_status() {
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace longspur::kernels
