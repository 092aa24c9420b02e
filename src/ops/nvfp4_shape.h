// What the NVFP4 operations check without looking at values, and the shapes of their results; the
// operations and their Meta kernels call the same functions. Sizes are symbolic.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <string_view>
#include <tuple>

#include "kernels/nvfp4/api.h"
#include "ops/nvfp4.h"

namespace longspur::ops {

struct Nvfp4QuantizeArgs {
  const at::Tensor& x;                    // [..., K], or [K, rows] to transpose
  const std::optional<at::Tensor>& amax;  // [], or one a row
  std::string_view rule, metric;
  bool tile_2d;
  std::string_view rounding;
  int64_t seed;
  bool per_row;
  int64_t scale_bound;
  const std::optional<at::Tensor>& importance;  // [K]
  bool hadamard, transpose, swizzle;
};

using Nvfp4Tensors = std::tuple<at::Tensor, at::Tensor, at::Tensor>;  // codes, scales, multiplier

// Throws UsageError, the names of all rules in it, where one is unknown.
kernels::nvfp4::Recipe nvfp4_recipe(const Nvfp4QuantizeArgs& args);

void check_nvfp4_quantize(const Nvfp4QuantizeArgs& args);
// Uninitialised, contiguous.
Nvfp4Tensors nvfp4_quantize_outputs(const Nvfp4QuantizeArgs& args);

// codes, block scales and tensor scale as an operation takes them.
struct Nvfp4Operand {
  const at::Tensor& codes;         // [..., K / 2]
  const at::Tensor& block_scales;  // [..., K / 16], or swizzled
  const at::Tensor& tensor_scale;  // [], or one a row
  bool swizzle = false;
};
void check_nvfp4_operand(std::string_view op, const Nvfp4Operand& operand);
void check_nvfp4_dequantize(const Nvfp4Operand& operand, at::ScalarType dtype);
at::Tensor nvfp4_dequantize_output(const Nvfp4Operand& operand, at::ScalarType dtype);

struct Nvfp4LinearArgs {
  const at::Tensor& x;                    // [..., K]
  const Nvfp4Operand& weight;             // [N, K]
  const std::optional<at::Tensor>& bias;  // [N]
  std::optional<std::string_view> activations;
  std::string_view activation_metric;
};
void check_nvfp4_linear(const Nvfp4LinearArgs& args);
at::Tensor nvfp4_linear_output(const Nvfp4LinearArgs& args);
// grad [..., N] to the gradient of x, [..., K].
void check_nvfp4_linear_backward(const at::Tensor& grad, const Nvfp4Operand& weight);
at::Tensor nvfp4_linear_backward_output(const at::Tensor& grad, const Nvfp4Operand& weight);

struct Nvfp4QatArgs {
  const at::Tensor& x;                    // [..., K]
  const at::Tensor& weight;               // [N, K]
  const std::optional<at::Tensor>& bias;  // [N]
  const Nvfp4QatOptions& options;
};
void check_nvfp4_linear_qat(const Nvfp4QatArgs& args);
at::Tensor nvfp4_linear_qat_output(const Nvfp4QatArgs& args);
void check_nvfp4_linear_qat_gradient(const Nvfp4QatArgs& args, const at::Tensor& grad);

// float32, bfloat16 or float16
void check_nvfp4_float(std::string_view op, std::string_view name, at::ScalarType dtype);

}  // namespace longspur::ops
