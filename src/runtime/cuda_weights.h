// Stored tensors to device memory: bf16 (fp32 in reference arithmetic), NVFP4 as it is; matrices
// that share their operand stacked.
#pragma once

#include <cstdint>
#include <functional>

#include "models/decoder_tensors.h"
#include "runtime/cuda_backend.h"

namespace longspur::runtime {

// progress(bytes of stored weights done). Tensors need not outlive the call.
CudaWeights load_cuda_weights(const models::DecoderTensors& tensors,
                              at::ScalarType type,
                              at::Device device,
                              const std::function<void(int64_t)>& progress);

}  // namespace longspur::runtime
