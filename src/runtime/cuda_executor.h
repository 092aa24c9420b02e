// The executor of a CUDA device; made behind the plugin's border.
#pragma once

#include <functional>
#include <memory>

#include "runtime/plugin.h"

namespace longspur::runtime {

std::unique_ptr<Executor> make_cuda_executor(const io::ModelConfig& config,
                                             const models::DecoderTensors& tensors,
                                             const DeviceExecutorOptions& options,
                                             const std::function<void(int64_t)>& progress);

}  // namespace longspur::runtime
