#include "ops/device_stream.h"

#include <c10/core/impl/VirtualGuardImpl.h>

#include "base/error.h"
#include "kernels/common/cuda/device.h"

namespace longspur::ops {

void check_launch(std::string_view op, kernels::CudaStatus status) {
  if (status != nullptr) throw Error(concat(op, ": ", status));
}

c10::Stream device_stream(std::string_view op, const at::Tensor& tensor) {
  check_launch(op, kernels::use_device(tensor.device().index()));
  return c10::impl::VirtualGuardImpl(tensor.device().type()).getStream(tensor.device());
}

}  // namespace longspur::ops
