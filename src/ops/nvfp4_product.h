// Products of matrices that may be in NVFP4. Private to ops/.
//
// A product of an element and its block scale has at most six significant bits and is exact in
// 16-bit floats too; so on a GPU 16-bit operands hold q * s, and the multipliers come in fp32 after
// the sums. Elsewhere operands are fp32 and hold q * s * multiplier.
#pragma once

#include <ATen/core/Tensor.h>

#include "ops/nvfp4_impl.h"

namespace longspur::ops {

struct Nvfp4Factor {
  at::Tensor values;      // [rows, K], fp32 or 16 bits
  at::Tensor multiplier;  // fp32 [1] or [rows], or undefined for 1
};

// The dtype that factors of products for tensors like x have.
at::ScalarType nvfp4_factor_dtype(const at::Tensor& x);

// x itself.
Nvfp4Factor nvfp4_plain_factor(const at::Tensor& x, at::ScalarType dtype);
// Rows [begin, begin + rows) of a quantised matrix: codes and scales uint8, tensor_scale [1] or
// [N].
Nvfp4Factor nvfp4_coded_factor(const at::Tensor& codes,
                               const at::Tensor& scales,
                               const at::Tensor& tensor_scale,
                               at::ScalarType dtype,
                               int64_t begin,
                               int64_t rows);

// a * b^T in fp32, [rows of a, rows of b].
at::Tensor nvfp4_product(const Nvfp4Factor& a, const Nvfp4Factor& b);

}  // namespace longspur::ops
