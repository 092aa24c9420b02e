// The project's name of a tensor's element type.
#pragma once

#include <ATen/core/Tensor.h>

#include "base/dtype.h"

namespace longspur::ops {

// float32, bfloat16, float16 or float64: what check_floating lets through.
DType dtype_of(const at::Tensor& tensor);

}  // namespace longspur::ops
