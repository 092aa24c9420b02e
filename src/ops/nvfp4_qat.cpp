// Training with quantised linear layers: the recipe of nvfp4.h.
#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>

#include "kernels/nvfp4/codec.h"
#include "ops/nvfp4.h"
#include "ops/nvfp4_product.h"
#include "ops/nvfp4_shape.h"

namespace longspur::ops {

namespace {

// How one operand of a product is quantised.
struct FactorRecipe {
  std::optional<std::string_view> rule;
  std::string_view rounding = "nearest";
  int64_t seed = 0;
  bool tile_2d = false, per_row = false, hadamard = false, transpose = false;
};

// x [rows, K], zeros appended to whole blocks of 16 where one is wanted.
at::Tensor padded(const at::Tensor& x, bool rows, bool columns) {
  const auto missing = [](int64_t size) { return (-size) & (kernels::nvfp4::kBlock - 1); };
  const int64_t more_rows = rows ? missing(x.size(0)) : 0;
  const int64_t more_columns = columns ? missing(x.size(1)) : 0;
  if (more_rows == 0 && more_columns == 0) return x;
  return at::constant_pad_nd(x, {0, more_columns, 0, more_rows});
}

// x, or its transpose, as an operand: quantised along the dimension that is summed over. Rows that
// padding to tiles would add are left out.
Nvfp4Factor factor(const at::Tensor& x,
                   const FactorRecipe& recipe,
                   std::string_view metric,
                   at::ScalarType dtype) {
  if (!recipe.rule) {
    const at::Tensor plain = padded(x, recipe.transpose, !recipe.transpose);
    return nvfp4_plain_factor(recipe.transpose ? plain.t() : plain, dtype);
  }
  const at::Tensor whole =
      padded(x, recipe.transpose || recipe.tile_2d, !recipe.transpose || recipe.tile_2d);
  const auto [codes, scales, tensor_scale] = nvfp4_quantize(
      whole, std::nullopt, *recipe.rule, metric, recipe.tile_2d, recipe.rounding, recipe.seed,
      recipe.per_row, 0, std::nullopt, recipe.hadamard, recipe.transpose);
  return nvfp4_coded_factor(codes, scales.view(at::kByte), tensor_scale.reshape({-1}), dtype, 0,
                            x.size(recipe.transpose ? 1 : 0));
}

struct Qat {
  const Nvfp4QatOptions& options;
  at::ScalarType dtype;  // of factors

  Nvfp4Factor weight(const at::Tensor& w, bool transpose) const {
    return factor(w,
                  {.rule = options.weight_rule, .tile_2d = options.tile_2d, .transpose = transpose},
                  options.metric, dtype);
  }
  Nvfp4Factor activation(const at::Tensor& x, bool transpose) const {
    return factor(x,
                  {.rule = options.activation_rule,
                   .per_row = options.per_row,
                   .hadamard = transpose && rotates(),
                   .transpose = transpose},
                  options.metric, dtype);
  }
  // The two products of the backward draw different numbers.
  Nvfp4Factor gradient(const at::Tensor& grad, bool transpose) const {
    const auto seed = static_cast<int64_t>(static_cast<uint64_t>(options.seed) * 2 + transpose);
    return factor(grad,
                  {.rule = options.gradient_rule,
                   .rounding = options.gradient_rounding,
                   .seed = seed,
                   .per_row = options.per_row,
                   .hadamard = transpose && rotates(),
                   .transpose = transpose},
                  options.metric, dtype);
  }
  // Both operands or none: a rotation cancels only against its like.
  bool rotates() const {
    return options.hadamard && options.activation_rule && options.gradient_rule;
  }
};

// x as the forward saw it, in x's own dtype.
at::Tensor as_seen(const at::Tensor& x,
                   std::optional<std::string_view> rule,
                   bool tile_2d,
                   bool per_row,
                   std::string_view metric) {
  if (!rule) return x;
  const at::Tensor whole = padded(x, tile_2d, false);
  return nvfp4_fake_quantize_forward(whole, std::nullopt, *rule, metric, tile_2d, "nearest", 0,
                                     per_row, 0, std::nullopt)
      .narrow(0, 0, x.size(0));
}

at::Tensor as_matrix(const at::Tensor& x) { return x.reshape({-1, x.size(-1)}); }

}  // namespace

at::Tensor nvfp4_linear_qat_forward(const at::Tensor& x,
                                    const at::Tensor& weight,
                                    const std::optional<at::Tensor>& bias,
                                    const Nvfp4QatOptions& options) {
  const Nvfp4QatArgs args{x, weight, bias, options};
  check_nvfp4_linear_qat(args);
  at::Tensor out = nvfp4_linear_qat_output(args);
  if (out.numel() == 0) return out;
  if (x.size(-1) == 0) return bias ? out.copy_(*bias) : out.zero_();
  const Qat qat{options, nvfp4_factor_dtype(x)};
  at::Tensor y = nvfp4_product(qat.activation(as_matrix(x), false), qat.weight(weight, false));
  if (bias) y.add_(*bias);
  return out.copy_(y.view(out.sizes()));
}

std::tuple<at::Tensor, at::Tensor> nvfp4_linear_qat_backward(const at::Tensor& grad,
                                                             const at::Tensor& x,
                                                             const at::Tensor& weight,
                                                             const Nvfp4QatOptions& options) {
  const Nvfp4QatArgs args{x, weight, std::nullopt, options};
  check_nvfp4_linear_qat(args);
  check_nvfp4_linear_qat_gradient(args, grad);
  if (grad.numel() == 0 || x.numel() == 0) return {at::zeros_like(x), at::zeros_like(weight)};
  const at::Tensor dx = at::empty(x.sizes(), x.options());
  const at::Tensor dw = at::empty(weight.sizes(), weight.options());
  const Qat qat{options, nvfp4_factor_dtype(x)};
  const at::Tensor g = as_matrix(grad), rows = as_matrix(x);
  if (options.quantize_dgrad) {
    dx.copy_(nvfp4_product(qat.gradient(g, false), qat.weight(weight, true)).view(x.sizes()));
  } else {
    const at::Tensor w =
        as_seen(weight, options.weight_rule, options.tile_2d, false, options.metric);
    dx.copy_(at::mm(g, w.to(g.scalar_type())).view(x.sizes()));
  }
  if (options.quantize_wgrad) {
    dw.copy_(nvfp4_product(qat.gradient(g, true), qat.activation(rows, true)));
  } else {
    const at::Tensor seen =
        as_seen(rows, options.activation_rule, false, options.per_row, options.metric);
    dw.copy_(at::mm(g.t(), seen));
  }
  return {dx, dw};
}

}  // namespace longspur::ops
