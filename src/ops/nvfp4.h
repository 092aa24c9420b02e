// NVFP4 as torch operations: quantise, dequantise, linear layers. The formulas and every special
// case are those of kernels/nvfp4/api.h.
//
// x [..., K]: float32, bfloat16 or float16; K a multiple of 16. Leading dimensions count as rows.
// codes uint8 [..., K / 2], low nibble first; block_scales float8_e4m3fn [..., K / 16];
// tensor_scale float32, [] or one a row: [...]. value = e2m1 * block scale * tensor scale.
//
// transpose: x [R, C] gives the quantisation of its transpose, codes [C, R / 2]. swizzle: the block
// scales of a matrix in tiles of 128 x 4 (codec.h), shape [rows up to 128, K / 16 up to 4], zero
// where there is no block.
//
// A wrong argument throws Error before anything is allocated. Values are not looked at: a NaN or an
// infinity in x reads back as NaN. Results do not depend on the number of threads.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <string_view>
#include <tuple>

namespace longspur::ops {

// Codes, block scales and tensor scale. amax: largest magnitude to scale by, [] or one a row;
// none: that of x, or with per_row of each row. importance [K] weighs the errors of a block.
std::tuple<at::Tensor, at::Tensor, at::Tensor> nvfp4_quantize(
    const at::Tensor& x,
    const std::optional<at::Tensor>& amax = std::nullopt,
    std::string_view rule = "four_over_six",
    std::string_view metric = "mse",
    bool tile_2d = false,
    std::string_view rounding = "nearest",
    int64_t seed = 0,
    bool per_row = false,
    int64_t scale_bound = 0,
    const std::optional<at::Tensor>& importance = std::nullopt,
    bool hadamard = false,
    bool transpose = false,
    bool swizzle = false);

at::Tensor nvfp4_dequantize(const at::Tensor& codes,
                            const at::Tensor& block_scales,
                            const at::Tensor& tensor_scale,
                            at::ScalarType dtype,
                            bool swizzle = false);

// x with its values rounded to NVFP4 and back: nvfp4_dequantize of nvfp4_quantize, in x's dtype.
// The gradient goes through unchanged (straight-through); _forward has none.
at::Tensor nvfp4_fake_quantize(const at::Tensor& x,
                               const std::optional<at::Tensor>& amax = std::nullopt,
                               std::string_view rule = "four_over_six",
                               std::string_view metric = "mse",
                               bool tile_2d = false,
                               std::string_view rounding = "nearest",
                               int64_t seed = 0,
                               bool per_row = false,
                               int64_t scale_bound = 0,
                               const std::optional<at::Tensor>& importance = std::nullopt);

at::Tensor nvfp4_fake_quantize_forward(const at::Tensor& x,
                                       const std::optional<at::Tensor>& amax,
                                       std::string_view rule,
                                       std::string_view metric,
                                       bool tile_2d,
                                       std::string_view rounding,
                                       int64_t seed,
                                       bool per_row,
                                       int64_t scale_bound,
                                       const std::optional<at::Tensor>& importance);

// y = x * W^T + bias, W [N, K] from codes, block_scales and tensor_scale; y [..., N] in x's dtype,
// sums in fp32. Without `activations` x keeps its precision and the weights are exact (W4A16). With
// the name of a rule, each row of x is quantised by it first (W4A4). Gradients: x (grad * W) and
// bias.
at::Tensor nvfp4_linear(const at::Tensor& x,
                        const at::Tensor& codes,
                        const at::Tensor& block_scales,
                        const at::Tensor& tensor_scale,
                        const std::optional<at::Tensor>& bias = std::nullopt,
                        std::optional<std::string_view> activations = std::nullopt,
                        std::string_view activation_metric = "mse");

// The same without autograd, and the gradient of x.
at::Tensor nvfp4_linear_forward(const at::Tensor& x,
                                const at::Tensor& codes,
                                const at::Tensor& block_scales,
                                const at::Tensor& tensor_scale,
                                const std::optional<at::Tensor>& bias,
                                std::optional<std::string_view> activations,
                                std::string_view activation_metric);
at::Tensor nvfp4_linear_backward(const at::Tensor& grad,
                                 const at::Tensor& codes,
                                 const at::Tensor& block_scales,
                                 const at::Tensor& tensor_scale);

// Quantisation-aware training (arXiv 2509.25149, section 4): the three products of a linear layer
// with operands in NVFP4, blocks along the dimension that is summed over. A rule that is missing
// leaves its kind of tensor as it is; a product that is switched off uses the forward's quantised
// operand in x's dtype (straight-through).
//   y  = Q(x) * Q(W)^T              to nearest
//   dx = Q(dy) * Q(W^T)^T           dy by gradient_rounding, W to nearest
//   dW = Q(dy^T) * Q(x^T)^T         both rotated (hadamard); dy by gradient_rounding
struct Nvfp4QatOptions {
  std::optional<std::string_view> activation_rule = "four_over_six";
  std::optional<std::string_view> weight_rule = "four_over_six";
  std::optional<std::string_view> gradient_rule = "four_over_six";
  std::string_view metric = "mse";
  bool tile_2d = false;  // of W: then W and W^T read back as the same numbers
  std::string_view gradient_rounding = "stochastic_unbiased";
  bool quantize_dgrad = true;
  bool quantize_wgrad = true;
  bool hadamard = true;
  bool per_row = true;  // one amax a row of x and dy (and of their transposes), else one for all
  int64_t seed = 0;     // of stochastic rounding: another for each step and layer
};
at::Tensor nvfp4_linear_qat(const at::Tensor& x,
                            const at::Tensor& weight,
                            const std::optional<at::Tensor>& bias,
                            const Nvfp4QatOptions& options);

at::Tensor nvfp4_linear_qat_forward(const at::Tensor& x,
                                    const at::Tensor& weight,
                                    const std::optional<at::Tensor>& bias,
                                    const Nvfp4QatOptions& options);
// Gradients of x and weight.
std::tuple<at::Tensor, at::Tensor> nvfp4_linear_qat_backward(const at::Tensor& grad,
                                                             const at::Tensor& x,
                                                             const at::Tensor& weight,
                                                             const Nvfp4QatOptions& options);

}  // namespace longspur::ops
