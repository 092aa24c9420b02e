#include "ops/nvfp4_shape.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <string>

#include "base/error.h"
#include "kernels/nvfp4/codec.h"
#include "ops/checks.h"

namespace longspur::ops {

namespace {

constexpr std::string_view kQuantize = "nvfp4_quantize";
constexpr std::string_view kDequantize = "nvfp4_dequantize";
constexpr std::string_view kLinear = "nvfp4_linear";
constexpr std::string_view kLinearBackward = "nvfp4_linear_backward";
constexpr std::string_view kQat = "nvfp4_linear_qat";
constexpr std::string_view kQatBackward = "nvfp4_linear_qat_backward";
using SymShape = std::vector<c10::SymInt>;

// Shape of the quantised matrix: that of x, or of its transpose.
SymShape logical_shape(const at::Tensor& x, bool transpose) {
  SymShape shape = x.sym_sizes().vec();
  if (transpose) std::swap(shape[0], shape[1]);
  return shape;
}

SymShape with_last(SymShape shape, const c10::SymInt& last) {
  shape.back() = last;
  return shape;
}

SymShape rows_of(SymShape shape) {
  shape.pop_back();
  return shape;
}

SymShape swizzled(const c10::SymInt& rows, const c10::SymInt& columns) {
  return {(rows + 127) / 128 * 128, (columns + 3) / 4 * 4};
}

bool is_scalar(const at::Tensor& tensor) { return tensor.dim() == 0; }
// One entry in one dimension stands for a scalar: files store it so.
bool is_single(const at::Tensor& tensor) { return tensor.dim() == 1 && tensor.sym_size(0) == 1; }

bool same_shape(const at::Tensor& tensor, const SymShape& shape) {
  return tensor.sym_sizes() == c10::SymIntArrayRef(shape);
}

// amax or a tensor scale: a scalar, or one a row.
void check_per_row(std::string_view op,
                   std::string_view name,
                   const at::Tensor& tensor,
                   const SymShape& rows) {
  if (is_scalar(tensor) || is_single(tensor) || same_shape(tensor, rows)) return;
  std::string expected;
  for (const c10::SymInt& size : rows)
    expected += (expected.empty() ? "" : ", ") + shown_size(size);
  throw Error(concat(op, ": ", name, ": found shape ", shown_shape(tensor), ", expected [] or [",
                     expected, "], one a row"));
}

void check_amax(const Nvfp4QuantizeArgs& args, const SymShape& rows) {
  if (!args.amax) return;
  const at::Tensor& amax = *args.amax;
  check_nvfp4_float(kQuantize, "amax", amax.scalar_type());
  check_per_row(kQuantize, "amax", amax, rows);
  require(amax.device() == args.x.device() || (is_scalar(amax) && amax.device().is_cpu()),
          kQuantize, ": amax: found on ", amax.device().str(), ", expected on ",
          args.x.device().str(), " as x is");
  require(!args.per_row || same_shape(amax, rows), kQuantize, ": amax: found shape ",
          shown_shape(amax), ", expected one a row, as per_row says");
}

void check_importance(const Nvfp4QuantizeArgs& args, const c10::SymInt& k) {
  if (!args.importance) return;
  check_nvfp4_float(kQuantize, "importance", args.importance->scalar_type());
  check_shape(kQuantize, "importance", *args.importance, {k}, "one a column");
  check_device(kQuantize, "importance", *args.importance, "x", args.x);
}

// Whether every row has its own multiplier.
bool row_scales(const Nvfp4QuantizeArgs& args) {
  if (!args.amax) return args.per_row;
  return args.amax->dim() > 0 &&
         same_shape(*args.amax, rows_of(logical_shape(args.x, args.transpose)));
}

void check_tiles(const Nvfp4QuantizeArgs& args, const SymShape& shape) {
  if (!args.tile_2d) return;
  require(shape.size() >= 2 && shape[shape.size() - 2] % 16 == 0, kQuantize, ": x: found shape ",
          shown_shape(args.x), ", expected rows in a multiple of 16 for tile_2d");
  require(!row_scales(args), kQuantize,
          ": tile_2d: found one amax a row, expected one for all, as rows of a tile share a scale");
}

kernels::nvfp4::Recipe parse_recipe(std::string_view op,
                                    std::string_view rule,
                                    std::string_view metric,
                                    std::string_view rounding) {
  kernels::nvfp4::Recipe recipe;
  try {
    recipe.rule = kernels::nvfp4::parse_rule(rule);
    recipe.metric = kernels::nvfp4::parse_metric(metric);
    recipe.rounding = kernels::nvfp4::parse_rounding(rounding);
  } catch (const UsageError& error) {
    throw UsageError(concat(op, ": ", error.what()));
  }
  return recipe;
}

}  // namespace

void check_nvfp4_float(std::string_view op, std::string_view name, at::ScalarType dtype) {
  if (dtype == at::kFloat || dtype == at::kBFloat16 || dtype == at::kHalf) return;
  throw Error(concat(op, ": ", name, ": found ", shown_dtype(dtype),
                     ", expected float32, bfloat16 or float16"));
}

kernels::nvfp4::Recipe nvfp4_recipe(const Nvfp4QuantizeArgs& args) {
  kernels::nvfp4::Recipe recipe = parse_recipe(kQuantize, args.rule, args.metric, args.rounding);
  recipe.tile_2d = args.tile_2d;
  recipe.seed = static_cast<uint64_t>(args.seed);
  recipe.bound = static_cast<int>(args.scale_bound);
  recipe.hadamard = args.hadamard;
  return recipe;
}

void check_nvfp4_quantize(const Nvfp4QuantizeArgs& args) {
  nvfp4_recipe(args);
  require(args.scale_bound == 0 || args.scale_bound == 256 || args.scale_bound == 448, kQuantize,
          ": scale_bound: found ", args.scale_bound, ", expected 256, 448 or 0 for the rule's own");
  check_nvfp4_float(kQuantize, "x", args.x.scalar_type());
  if (args.transpose) check_dim(kQuantize, "x", args.x, 2, "[K, rows] for transpose");
  if (args.swizzle) check_dim(kQuantize, "x", args.x, 2, "[rows, K] for swizzle");
  require(args.x.dim() > 0, kQuantize, ": x: found a scalar, expected [..., K]");
  const SymShape shape = logical_shape(args.x, args.transpose);
  if (shape.back() % kernels::nvfp4::kBlock != 0) {
    throw Error(concat(kQuantize, ": x: found shape ", shown_shape(args.x), ", expected ",
                       args.transpose ? "[K, rows]" : "[..., K]", " with K a multiple of 16"));
  }
  check_amax(args, rows_of(shape));
  check_importance(args, shape.back());
  check_tiles(args, shape);
}

Nvfp4Tensors nvfp4_quantize_outputs(const Nvfp4QuantizeArgs& args) {
  const SymShape shape = logical_shape(args.x, args.transpose);
  const c10::SymInt k = shape.back();
  const SymShape scales = args.swizzle ? swizzled(shape.front(), k / 16) : with_last(shape, k / 16);
  const auto options = args.x.options();
  return {
      at::empty_symint(with_last(shape, k / 2), options.dtype(at::kByte)),
      at::empty_symint(scales, options.dtype(at::kFloat8_e4m3fn)),
      at::empty_symint(row_scales(args) ? rows_of(shape) : SymShape{}, options.dtype(at::kFloat))};
}

void check_nvfp4_operand(std::string_view op, const Nvfp4Operand& operand) {
  const auto& [codes, scales, tensor_scale, swizzle] = operand;
  check_dtype(op, "codes", codes, at::kByte);
  require(codes.dim() > 0, op, ": codes: found a scalar, expected [..., K / 2]");
  if (swizzle) check_dim(op, "codes", codes, 2, "[rows, K / 2] for swizzled scales");
  const SymShape shape = codes.sym_sizes().vec();
  if (shape.back() % 8 != 0) {
    throw Error(concat(op, ": codes: found shape ", shown_shape(codes),
                       ", expected [..., K / 2] with K a multiple of 16"));
  }
  require(scales.scalar_type() == at::kFloat8_e4m3fn || scales.scalar_type() == at::kByte, op,
          ": block_scales: found ", shown_dtype(scales.scalar_type()),
          ", expected float8_e4m3fn, or its bytes as uint8");
  check_shape(
      op, "block_scales", scales,
      swizzle ? swizzled(shape.front(), shape.back() / 8) : with_last(shape, shape.back() / 8),
      swizzle ? "tiles of 128 rows and 4 scales" : "[..., K / 16]");
  check_dtype(op, "tensor_scale", tensor_scale, at::kFloat);
  check_per_row(op, "tensor_scale", tensor_scale, rows_of(shape));
  check_device(op, "block_scales", scales, "codes", codes);
  check_device(op, "tensor_scale", tensor_scale, "codes", codes);
}

void check_nvfp4_linear(const Nvfp4LinearArgs& args) {
  check_nvfp4_float(kLinear, "x", args.x.scalar_type());
  require(args.x.dim() > 0, kLinear, ": x: found a scalar, expected [..., K]");
  check_nvfp4_operand(kLinear, args.weight);
  const at::Tensor& codes = args.weight.codes;
  check_dim(kLinear, "codes", codes, 2, "[N, K / 2]");
  if (args.x.sym_size(-1) != codes.sym_size(1) * 2) {
    throw Error(concat(kLinear, ": x: found shape ", shown_shape(args.x), ", expected [..., ",
                       shown_size(codes.sym_size(1) * 2), "], K of the weight"));
  }
  check_device(kLinear, "codes", codes, "x", args.x);
  if (args.bias) {
    check_shape(kLinear, "bias", *args.bias, {codes.sym_size(0)}, "[N]");
    check_nvfp4_float(kLinear, "bias", args.bias->scalar_type());
    check_device(kLinear, "bias", *args.bias, "x", args.x);
  }
  if (args.activations) {
    parse_recipe(kLinear, *args.activations, args.activation_metric, "nearest");
  }
}

at::Tensor nvfp4_linear_output(const Nvfp4LinearArgs& args) {
  const SymShape shape = with_last(args.x.sym_sizes().vec(), args.weight.codes.sym_size(0));
  return at::empty_symint(shape, args.x.options());
}

void check_nvfp4_linear_backward(const at::Tensor& grad, const Nvfp4Operand& weight) {
  check_nvfp4_float(kLinearBackward, "grad", grad.scalar_type());
  require(grad.dim() > 0, kLinearBackward, ": grad: found a scalar, expected [..., N]");
  check_nvfp4_operand(kLinearBackward, weight);
  check_dim(kLinearBackward, "codes", weight.codes, 2, "[N, K / 2]");
  check_shape(kLinearBackward, "grad", grad,
              with_last(grad.sym_sizes().vec(), weight.codes.sym_size(0)), "[..., N]");
  check_device(kLinearBackward, "codes", weight.codes, "grad", grad);
}

at::Tensor nvfp4_linear_backward_output(const at::Tensor& grad, const Nvfp4Operand& weight) {
  const SymShape shape = with_last(grad.sym_sizes().vec(), weight.codes.sym_size(1) * 2);
  return at::empty_symint(shape, grad.options());
}

void check_nvfp4_dequantize(const Nvfp4Operand& operand, at::ScalarType dtype) {
  check_nvfp4_operand(kDequantize, operand);
  check_nvfp4_float(kDequantize, "dtype", dtype);
}

at::Tensor nvfp4_dequantize_output(const Nvfp4Operand& operand, at::ScalarType dtype) {
  const SymShape shape = operand.codes.sym_sizes().vec();
  return at::empty_symint(with_last(shape, shape.back() * 2), operand.codes.options().dtype(dtype));
}

void check_nvfp4_linear_qat(const Nvfp4QatArgs& args) {
  check_nvfp4_float(kQat, "x", args.x.scalar_type());
  check_nvfp4_float(kQat, "weight", args.weight.scalar_type());
  require(args.x.dim() > 0, kQat, ": x: found a scalar, expected [..., K]");
  check_dim(kQat, "weight", args.weight, 2, "[N, K]");
  const c10::SymInt k = args.weight.sym_size(1);
  if (k % kernels::nvfp4::kBlock != 0 || args.x.sym_size(-1) != k) {
    throw Error(concat(kQat, ": found x ", shown_shape(args.x), " and weight ",
                       shown_shape(args.weight),
                       ", expected [..., K] and [N, K] with K a multiple "
                       "of 16"));
  }
  check_device(kQat, "weight", args.weight, "x", args.x);
  if (args.bias) {
    check_shape(kQat, "bias", *args.bias, {args.weight.sym_size(0)}, "[N]");
    check_nvfp4_float(kQat, "bias", args.bias->scalar_type());
    check_device(kQat, "bias", *args.bias, "x", args.x);
  }
  const Nvfp4QatOptions& options = args.options;
  for (const auto& rule : {options.activation_rule, options.weight_rule, options.gradient_rule})
    parse_recipe(kQat, rule.value_or("static_6"), options.metric, options.gradient_rounding);
}

at::Tensor nvfp4_linear_qat_output(const Nvfp4QatArgs& args) {
  const SymShape shape = with_last(args.x.sym_sizes().vec(), args.weight.sym_size(0));
  return at::empty_symint(shape, args.x.options());
}

void check_nvfp4_linear_qat_gradient(const Nvfp4QatArgs& args, const at::Tensor& grad) {
  const SymShape shape = with_last(args.x.sym_sizes().vec(), args.weight.sym_size(0));
  check_like(kQatBackward, "grad", grad, "x", args.x);
  check_shape(kQatBackward, "grad", grad, shape, "[..., N]");
}

}  // namespace longspur::ops
