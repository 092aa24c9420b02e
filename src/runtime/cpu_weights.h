// Stored tensors to packed weights of the CPU backend.
#pragma once

#include <functional>

#include "base/thread_pool.h"
#include "io/files/model_config.h"
#include "models/decoder_tensors.h"
#include "runtime/cpu_backend.h"

namespace longspur::runtime {

// The type a stored matrix has in memory: its own where a kernel exists, else bf16; all fp32 in
// reference arithmetic.
DType cpu_weight_type(const models::TensorSource& source, bool fp32);

CpuWeights load_cpu_weights(const models::DecoderTensors& tensors,
                            bool fp32,
                            ThreadPool& pool,
                            const std::function<void(int64_t)>& progress);

}  // namespace longspur::runtime
