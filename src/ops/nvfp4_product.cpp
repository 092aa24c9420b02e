#include "ops/nvfp4_product.h"

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>

namespace longspur::ops {

at::ScalarType nvfp4_factor_dtype(const at::Tensor& x) {
  return x.device().is_cpu() ? at::kFloat : x.scalar_type();
}

Nvfp4Factor nvfp4_plain_factor(const at::Tensor& x, at::ScalarType dtype) {
  return {x.to(dtype), at::Tensor()};
}

Nvfp4Factor nvfp4_coded_factor(const at::Tensor& codes,
                               const at::Tensor& scales,
                               const at::Tensor& tensor_scale,
                               at::ScalarType dtype,
                               int64_t begin,
                               int64_t rows) {
  Nvfp4DequantizeProblem problem;
  problem.codes = codes.narrow(0, begin, rows);
  problem.scales = scales.narrow(0, begin, rows);
  problem.rows = rows;
  problem.k = codes.size(1) * 2;
  const bool per_row = tensor_scale.numel() > 1;
  const at::Tensor multiplier = per_row ? tensor_scale.narrow(0, begin, rows) : tensor_scale;
  const bool folded = dtype == at::kFloat;
  problem.tensor_scale = folded ? multiplier : at::ones({1}, multiplier.options());
  problem.out = at::empty({rows, problem.k}, codes.options().dtype(dtype));
  nvfp4_dequantize_rows(problem);
  return {problem.out, folded ? at::Tensor() : multiplier};
}

at::Tensor nvfp4_product(const Nvfp4Factor& a, const Nvfp4Factor& b) {
  at::Tensor y = a.values.scalar_type() == at::kFloat ? at::mm(a.values, b.values.t())
                                                      : at::mm(a.values, b.values.t(), at::kFloat);
  if (a.multiplier.defined()) y.mul_(a.multiplier.unsqueeze(1));
  if (b.multiplier.defined()) y.mul_(b.multiplier);
  return y;
}

}  // namespace longspur::ops
