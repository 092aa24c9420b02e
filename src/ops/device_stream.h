// Where the kernels of kernels/**/cuda are to run: torch's current stream, without CUDA headers.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Stream.h>

#include <string_view>

#include "kernels/common/cuda/status.h"

namespace longspur::ops {

// Throws an Error with the operation's name when a launcher gives an error's text.
void check_launch(std::string_view op, kernels::CudaStatus status);

// The current stream of the tensor's device. The kernels have a CUDA runtime of their own, which is
// told the device first.
c10::Stream device_stream(std::string_view op, const at::Tensor& tensor);

}  // namespace longspur::ops
