#include "ops/dtype.h"

#include "base/error.h"

namespace longspur::ops {

DType dtype_of(const at::Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case at::kFloat:
      return DType::kF32;
    case at::kBFloat16:
      return DType::kBF16;
    case at::kHalf:
      return DType::kF16;
    case at::kDouble:
      return DType::kF64;
    default:
      throw InternalError(concat("dtype_of: ", c10::toString(tensor.scalar_type())));
  }
}

}  // namespace longspur::ops
