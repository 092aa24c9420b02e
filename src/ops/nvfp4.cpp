#include "ops/nvfp4.h"

#include <ATen/Functions.h>

#include <algorithm>

#include "base/error.h"
#include "kernels/nvfp4/codec.h"
#include "ops/checks.h"
#include "ops/nvfp4_impl.h"
#include "ops/nvfp4_shape.h"

namespace longspur::ops {

namespace {

// The first implementation of the list, the device's own before, for which `accepts` holds.
template <class Problem>
const Nvfp4Implementation& choose(bool (*const Nvfp4Implementation::*accepts)(const Problem&),
                                  const Problem& problem) {
  for (const Nvfp4Implementation* candidate : nvfp4_device_implementations())
    if ((candidate->*accepts)(problem)) return *candidate;
  return (kNvfp4Cpu.*accepts)(problem) ? kNvfp4Cpu : kNvfp4Torch;
}

Nvfp4QuantizeProblem make_problem(const Nvfp4QuantizeArgs& args) {
  Nvfp4QuantizeProblem problem;
  problem.recipe = nvfp4_recipe(args);
  problem.transposed = args.transpose;
  problem.k = args.transpose ? args.x.size(0) : args.x.size(-1);
  problem.rows = problem.k == 0 ? 0 : args.x.numel() / problem.k;
  const at::Tensor x = args.transpose ? args.x : args.x.reshape({problem.rows, problem.k});
  const bool overlapping = x.stride(0) < x.size(1) && x.size(0) > 1;  // as expand() makes
  problem.x = overlapping ? x.contiguous() : with_contiguous_rows(x);
  const auto options = args.x.options().dtype(at::kFloat);
  if (args.amax) problem.amax = args.amax->to(options).abs().contiguous();
  if (args.importance) problem.importance = args.importance->to(options).contiguous();
  return problem;
}

// Scales [rows, columns] in tiles of 128 rows by 4 (codec.h), what is padded zero.
void swizzle_scales(const at::Tensor& scales, const at::Tensor& out) {
  const at::Tensor padded = at::zeros(out.sizes(), scales.options());
  padded.narrow(0, 0, scales.size(0)).narrow(1, 0, scales.size(1)).copy_(scales);
  const int64_t row_tiles = out.size(0) / 128, column_tiles = out.size(1) / 4;
  out.view({row_tiles, column_tiles, 32, 4, 4})
      .copy_(padded.view({row_tiles, 4, 32, column_tiles, 4}).permute({0, 3, 2, 1, 4}));
}

// The inverse of swizzle_scales.
at::Tensor plain_scales(const at::Tensor& tiles, int64_t rows, int64_t columns) {
  const int64_t row_tiles = tiles.size(0) / 128, column_tiles = tiles.size(1) / 4;
  return tiles.contiguous()
      .view({row_tiles, column_tiles, 32, 4, 4})
      .permute({0, 3, 2, 1, 4})
      .reshape({row_tiles * 128, column_tiles * 4})
      .narrow(0, 0, rows)
      .narrow(1, 0, columns)
      .contiguous();
}

}  // namespace

void nvfp4_quantize_rows(const Nvfp4QuantizeProblem& problem) {
  choose(&Nvfp4Implementation::accepts_quantize, problem).quantize(problem);
}

void nvfp4_dequantize_rows(const Nvfp4DequantizeProblem& problem) {
  choose(&Nvfp4Implementation::accepts_dequantize, problem).dequantize(problem);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> nvfp4_quantize(
    const at::Tensor& x,
    const std::optional<at::Tensor>& amax,
    std::string_view rule,
    std::string_view metric,
    bool tile_2d,
    std::string_view rounding,
    int64_t seed,
    bool per_row,
    int64_t scale_bound,
    const std::optional<at::Tensor>& importance,
    bool hadamard,
    bool transpose,
    bool swizzle) {
  const Nvfp4QuantizeArgs args{x,        amax,      rule,    metric,      tile_2d,
                               rounding, seed,      per_row, scale_bound, importance,
                               hadamard, transpose, swizzle};
  check_nvfp4_quantize(args);
  const Nvfp4Tensors result = nvfp4_quantize_outputs(args);
  const auto& [codes, scales, tensor_scale] = result;
  if (x.numel() == 0) {
    scales.view(at::kByte).zero_();
    tensor_scale.zero_();
    return result;
  }
  Nvfp4QuantizeProblem problem = make_problem(args);
  problem.per_row = tensor_scale.dim() > 0 || per_row;
  problem.codes = codes.view({problem.rows, problem.k / 2});
  problem.tensor_scale = tensor_scale.view({-1});
  const at::Tensor bytes = scales.view(at::kByte);
  const std::array<int64_t, 2> grid = {problem.rows, problem.k / kernels::nvfp4::kBlock};
  problem.scales = swizzle ? at::empty(grid, bytes.options()) : bytes.view(grid);
  nvfp4_quantize_rows(problem);
  if (swizzle) swizzle_scales(problem.scales, bytes);
  return result;
}

at::Tensor nvfp4_dequantize(const at::Tensor& codes,
                            const at::Tensor& block_scales,
                            const at::Tensor& tensor_scale,
                            at::ScalarType dtype,
                            bool swizzle) {
  const Nvfp4Operand operand{codes, block_scales, tensor_scale, swizzle};
  check_nvfp4_dequantize(operand, dtype);
  at::Tensor out = nvfp4_dequantize_output(operand, dtype);
  if (out.numel() == 0) return out;
  nvfp4_dequantize_rows(nvfp4_rows(operand, out));
  return out;
}

at::Tensor nvfp4_fake_quantize_forward(const at::Tensor& x,
                                       const std::optional<at::Tensor>& amax,
                                       std::string_view rule,
                                       std::string_view metric,
                                       bool tile_2d,
                                       std::string_view rounding,
                                       int64_t seed,
                                       bool per_row,
                                       int64_t scale_bound,
                                       const std::optional<at::Tensor>& importance) {
  const auto [codes, scales, tensor_scale] = nvfp4_quantize(
      x, amax, rule, metric, tile_2d, rounding, seed, per_row, scale_bound, importance);
  return nvfp4_dequantize(codes, scales, tensor_scale, x.scalar_type());
}

Nvfp4DequantizeProblem nvfp4_rows(const Nvfp4Operand& operand, const at::Tensor& out) {
  Nvfp4DequantizeProblem problem;
  problem.k = operand.codes.size(-1) * 2;
  problem.rows = operand.codes.numel() * 2 / problem.k;
  const int64_t columns = problem.k / kernels::nvfp4::kBlock;
  problem.codes = operand.codes.reshape({problem.rows, problem.k / 2}).contiguous();
  const at::Tensor bytes = operand.block_scales.view(at::kByte);
  problem.scales = operand.swizzle ? plain_scales(bytes, problem.rows, columns)
                                   : bytes.reshape({problem.rows, columns}).contiguous();
  problem.tensor_scale = operand.tensor_scale.reshape({-1}).contiguous();
  problem.out = out.view({problem.rows, problem.k});
  return problem;
}

}  // namespace longspur::ops
