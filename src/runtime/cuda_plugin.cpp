// What liblongspur_cuda.so exports.
#include <c10/core/impl/DeviceGuardImplInterface.h>

#include "base/error.h"
#include "kernels/common/cuda/device.h"
#include "runtime/cuda_executor.h"
#include "runtime/plugin.h"

namespace longspur::runtime {

namespace {

void require_device(int device) {
  if (!c10::impl::hasDeviceGuardImpl(at::kCUDA))
    throw UnsupportedError("device cuda: the torch of this build has no CUDA");
  int count = 0;
  if (const auto status = kernels::device_count(count))
    throw UnsupportedError(concat("device cuda:", device, ": ", status));
  if (device >= count) {
    throw UnsupportedError(concat("device cuda:", device, ": found ", count,
                                  " CUDA devices, expected at least ", device + 1));
  }
}

DeviceMemory memory_of(int device) {
  require_device(device);
  DeviceMemory memory;
  if (const auto status = kernels::device_memory(device, memory.free, memory.total))
    throw UnsupportedError(concat("device cuda:", device, ": ", status));
  return memory;
}

std::string name_of(int device) {
  require_device(device);
  std::string name;
  if (const auto status = kernels::device_name(device, name))
    throw UnsupportedError(concat("device cuda:", device, ": ", status));
  return name;
}

std::unique_ptr<Executor> make(const io::ModelConfig& config,
                               const models::DecoderTensors& tensors,
                               const DeviceExecutorOptions& options,
                               const std::function<void(int64_t)>& progress) {
  require_device(options.device);
  return make_cuda_executor(config, tensors, options, progress);
}

}  // namespace

}  // namespace longspur::runtime

extern "C" __attribute__((visibility("default")))
const longspur::runtime::DevicePlugin longspur_cuda_plugin_4 = {
    longspur::runtime::make, longspur::runtime::memory_of, longspur::runtime::name_of};
