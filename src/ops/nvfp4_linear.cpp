// Linear layers with NVFP4 weights.
#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>

#include <algorithm>

#include "ops/nvfp4.h"
#include "ops/nvfp4_impl.h"
#include "ops/nvfp4_product.h"
#include "ops/nvfp4_shape.h"

namespace longspur::ops {

namespace {

// Weights decoded at a time: on the CPU a slice stays in the cache until the product has read it,
// elsewhere only memory counts.
int64_t slice_rows(const at::Tensor& codes) {
  const int64_t elements = codes.device().is_cpu() ? int64_t{1} << 19 : int64_t{1} << 26;
  return std::clamp<int64_t>(elements / (codes.size(1) * 2), 1, codes.size(0));
}

// Calls f(begin, rows) for slices of the N rows.
template <class F>
void for_each_slice(const at::Tensor& codes, const F& f) {
  const int64_t step = slice_rows(codes);
  for (int64_t begin = 0; begin < codes.size(0); begin += step)
    f(begin, std::min(step, codes.size(0) - begin));
}

bool run(const Nvfp4LinearProblem& problem) {
  const at::ScalarType dtype = nvfp4_factor_dtype(problem.x);
  const Nvfp4Factor x =
      problem.x_codes.defined()
          ? nvfp4_coded_factor(problem.x_codes, problem.x_scales, problem.x_tensor_scale, dtype, 0,
                               problem.x.size(0))
          : nvfp4_plain_factor(problem.x, dtype);
  for_each_slice(problem.codes, [&](int64_t begin, int64_t rows) {
    const Nvfp4Factor w =
        nvfp4_coded_factor(problem.codes, problem.scales, problem.tensor_scale, dtype, begin, rows);
    at::Tensor y = nvfp4_product(x, w);
    if (problem.bias.defined()) y.add_(problem.bias.narrow(0, begin, rows));
    problem.out.narrow(1, begin, rows).copy_(y);
  });
  return true;
}

// [..., C] to [rows, C]
at::Tensor as_matrix(const at::Tensor& x) { return x.dim() == 2 ? x : x.reshape({-1, x.size(-1)}); }

void run_best(const Nvfp4LinearProblem& problem) {
  for (const Nvfp4LinearImplementation* candidate : nvfp4_device_linear_implementations())
    if (candidate->run(problem)) return;
  kNvfp4LinearTorch.run(problem);
}

}  // namespace

const Nvfp4LinearImplementation kNvfp4LinearTorch = {"torch", run};

at::Tensor nvfp4_linear_forward(const at::Tensor& x,
                                const at::Tensor& codes,
                                const at::Tensor& block_scales,
                                const at::Tensor& tensor_scale,
                                const std::optional<at::Tensor>& bias,
                                std::optional<std::string_view> activations,
                                std::string_view activation_metric) {
  const Nvfp4Operand weight{codes, block_scales, tensor_scale};
  const Nvfp4LinearArgs args{x, weight, bias, activations, activation_metric};
  check_nvfp4_linear(args);
  at::Tensor out = nvfp4_linear_output(args);
  if (out.numel() == 0) return out;
  if (x.size(-1) == 0) return bias ? out.copy_(*bias) : out.zero_();
  Nvfp4LinearProblem problem;
  problem.x = as_matrix(x).contiguous();
  problem.codes = codes.contiguous();
  problem.scales = block_scales.view(at::kByte).contiguous();
  problem.tensor_scale = tensor_scale.reshape({-1}).contiguous();
  problem.given_codes = codes;
  problem.given_scales = block_scales;
  if (bias) problem.bias = bias->contiguous();
  problem.out = as_matrix(out);
  if (activations) {
    const auto [x_codes, x_scales, x_tensor_scale] = nvfp4_quantize(
        problem.x, std::nullopt, *activations, activation_metric, false, "nearest", 0, true);
    problem.x_codes = x_codes;
    problem.x_scales = x_scales.view(at::kByte);
    problem.x_tensor_scale = x_tensor_scale;
  }
  run_best(problem);
  return out;
}

at::Tensor nvfp4_linear_backward(const at::Tensor& grad,
                                 const at::Tensor& codes,
                                 const at::Tensor& block_scales,
                                 const at::Tensor& tensor_scale) {
  const Nvfp4Operand weight{codes, block_scales, tensor_scale};
  check_nvfp4_linear_backward(grad, weight);
  at::Tensor out = nvfp4_linear_backward_output(grad, weight);
  if (out.numel() == 0) return out;
  if (grad.numel() == 0) return out.zero_();
  const at::Tensor scales = block_scales.view(at::kByte).contiguous();
  const at::Tensor multiplier = tensor_scale.reshape({-1}).contiguous();
  const at::Tensor c = codes.contiguous(), g = as_matrix(grad);
  // Multipliers of rows stand on the dimension that is summed over: they go into the weights.
  const at::ScalarType dtype = multiplier.numel() > 1 ? at::kFloat : nvfp4_factor_dtype(grad);
  at::Tensor sum = at::zeros({g.size(0), c.size(1) * 2}, g.options().dtype(at::kFloat));
  for_each_slice(c, [&](int64_t begin, int64_t rows) {
    Nvfp4Factor w = nvfp4_coded_factor(c, scales, multiplier, dtype, begin, rows);
    w.values = w.values.t();
    sum.add_(nvfp4_product(nvfp4_plain_factor(g.narrow(1, begin, rows), dtype), w));
  });
  return out.copy_(sum.view(out.sizes()));
}

}  // namespace longspur::ops
