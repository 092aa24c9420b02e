// The CUDA executor lives in a library of its own, loaded when a CUDA device is asked for, so that
// the CPU program neither links nor loads a GPU runtime. This is the border: one exported function.
#pragma once

#include <functional>
#include <memory>

#include "io/files/model_config.h"
#include "models/decoder_tensors.h"
#include "runtime/executor.h"

namespace longspur::runtime {

struct DeviceExecutorOptions {
  int device = 0;            // index
  bool fp32 = false;         // reference arithmetic
  int64_t max_tokens = 512;  // of one forward
  int64_t max_sequences = 16;
  int64_t max_context = 0;
};

using MakeDeviceExecutor = std::unique_ptr<Executor>(const io::ModelConfig& config,
                                                     const models::DecoderTensors& tensors,
                                                     const DeviceExecutorOptions& options,
                                                     const std::function<void(int64_t)>& progress);

inline constexpr const char* kMakeCudaExecutorSymbol = "longspur_make_cuda_executor";

// Loads liblongspur_cuda.so (LONGSPUR_CUDA_LIBRARY, else beside the binary's ../lib) once and
// returns its factory. Throws UnsupportedError naming where it looked and what the loader said.
MakeDeviceExecutor* load_cuda_plugin();

}  // namespace longspur::runtime
