// The operations of quantised training as their schemas have them: options one by one.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <string_view>
#include <tuple>

#include "ops/nvfp4.h"

namespace longspur {

using Nvfp4Rule = std::optional<std::string_view>;

// F(x, weight, bias, options): one of ops::nvfp4_linear_qat*.
template <auto F>
at::Tensor nvfp4_linear_qat(const at::Tensor& x,
                            const at::Tensor& weight,
                            const std::optional<at::Tensor>& bias,
                            Nvfp4Rule activation_rule,
                            Nvfp4Rule weight_rule,
                            Nvfp4Rule gradient_rule,
                            std::string_view metric,
                            bool tile_2d,
                            std::string_view gradient_rounding,
                            bool quantize_dgrad,
                            bool quantize_wgrad,
                            bool hadamard,
                            bool per_row,
                            int64_t seed) {
  return F(x, weight, bias,
           {activation_rule, weight_rule, gradient_rule, metric, tile_2d, gradient_rounding,
            quantize_dgrad, quantize_wgrad, hadamard, per_row, seed});
}

// F(grad, x, weight, options)
template <auto F>
std::tuple<at::Tensor, at::Tensor> nvfp4_linear_qat_backward(const at::Tensor& grad,
                                                             const at::Tensor& x,
                                                             const at::Tensor& weight,
                                                             Nvfp4Rule activation_rule,
                                                             Nvfp4Rule weight_rule,
                                                             Nvfp4Rule gradient_rule,
                                                             std::string_view metric,
                                                             bool tile_2d,
                                                             std::string_view gradient_rounding,
                                                             bool quantize_dgrad,
                                                             bool quantize_wgrad,
                                                             bool hadamard,
                                                             bool per_row,
                                                             int64_t seed) {
  return F(grad, x, weight,
           {activation_rule, weight_rule, gradient_rule, metric, tile_2d, gradient_rounding,
            quantize_dgrad, quantize_wgrad, hadamard, per_row, seed});
}

}  // namespace longspur
