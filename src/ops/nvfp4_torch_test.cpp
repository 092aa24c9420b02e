// The formulas in torch's operations against the kernels' reference, bit for bit: what CUDA tensors
// get in a build without CUDA kernels, tested where no such device is.
#include <ATen/Functions.h>
#include <gtest/gtest.h>

#include <limits>
#include <string>

#include "kernels/nvfp4/codec.h"
#include "ops/nvfp4_impl.h"

namespace longspur::ops {
namespace {

namespace kernel = kernels::nvfp4;

Nvfp4QuantizeProblem make_problem(const at::Tensor& x, const kernel::Recipe& recipe, bool per_row) {
  Nvfp4QuantizeProblem problem;
  problem.x = x;
  problem.rows = x.size(0);
  problem.k = x.size(1);
  problem.per_row = per_row;
  problem.recipe = recipe;
  const auto bytes = at::TensorOptions(at::kByte);
  problem.codes = at::full({problem.rows, problem.k / 2}, 0xee, bytes);
  problem.scales = at::full({problem.rows, problem.k / kernel::kBlock}, 0xee, bytes);
  problem.tensor_scale = at::full({per_row ? problem.rows : 1}, -1.0);
  return problem;
}

void expect_equal(Nvfp4QuantizeProblem problem, const std::string& what) {
  kNvfp4Cpu.quantize(problem);
  Nvfp4QuantizeProblem other = problem;
  other.codes = at::zeros_like(problem.codes);
  other.scales = at::zeros_like(problem.scales);
  other.tensor_scale = at::zeros_like(problem.tensor_scale);
  kNvfp4Torch.quantize(other);
  EXPECT_TRUE(at::equal(problem.codes, other.codes)) << what;
  EXPECT_TRUE(at::equal(problem.scales, other.scales)) << what;
  EXPECT_TRUE(problem.tensor_scale.equal(other.tensor_scale) ||
              problem.tensor_scale.isnan().equal(other.tensor_scale.isnan()))
      << what;
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16, at::kHalf}) {
    Nvfp4DequantizeProblem back;
    back.codes = problem.codes;
    back.scales = problem.scales;
    back.tensor_scale = problem.tensor_scale;
    back.rows = problem.rows;
    back.k = problem.k;
    back.out = at::empty({problem.rows, problem.k}, dtype);
    kNvfp4Cpu.dequantize(back);
    const at::Tensor expected = back.out;
    back.out = at::empty_like(expected);
    kNvfp4Torch.dequantize(back);
    EXPECT_TRUE(at::allclose(back.out.to(at::kFloat), expected.to(at::kFloat), 0, 0, true)) << what;
  }
}

// Normal numbers, outliers, blocks of zeros, denormals, an infinity, in one matrix.
at::Tensor adversarial() {
  at::manual_seed(3);
  at::Tensor x = at::randn({32, 64});
  x.select(0, 1).mul_(1e-3);
  x.select(0, 2).zero_();
  x.select(0, 3).mul_(1e-42);
  x.select(0, 4).mul_(1e30);
  x.narrow(1, 0, 16).select(0, 5).mul_(1e4);
  return x;
}

TEST(Nvfp4Torch, EqualsTheReference) {
  const at::Tensor plain = at::randn({32, 64}), hard = adversarial();
  at::Tensor broken = at::randn({32, 64});
  broken[7][9] = std::numeric_limits<float>::infinity();
  broken[8][20] = std::numeric_limits<float>::quiet_NaN();
  for (const auto rule : {"static_6", "static_4", "four_over_six", "sweep", "full_sweep"}) {
    for (const auto metric : {"mse", "mae", "abs_max"}) {
      for (const auto rounding : {"nearest", "stochastic", "stochastic_unbiased"}) {
        kernel::Recipe recipe;
        recipe.rule = kernel::parse_rule(rule);
        recipe.metric = kernel::parse_metric(metric);
        recipe.rounding = kernel::parse_rounding(rounding);
        recipe.seed = 0x123456789abcdefu;
        const std::string what = std::string(rule) + " " + metric + " " + rounding;
        expect_equal(make_problem(plain, recipe, false), what);
        expect_equal(make_problem(hard, recipe, true), what + " adversarial");
        expect_equal(make_problem(broken, recipe, true), what + " not finite");
        recipe.tile_2d = true;
        expect_equal(make_problem(plain, recipe, false), what + " tiles");
      }
    }
  }
}

TEST(Nvfp4Torch, OptionsEqualTheReference) {
  kernel::Recipe recipe;
  recipe.hadamard = true;
  recipe.bound = 448;
  Nvfp4QuantizeProblem problem = make_problem(at::randn({32, 64}), recipe, true);
  expect_equal(problem, "rotated");
  problem.importance = at::rand({64});
  expect_equal(problem, "weighted");
  problem.recipe.tile_2d = true;
  problem.per_row = false;
  problem.tensor_scale = at::zeros({1});
  expect_equal(problem, "weighted tiles");
  problem.amax = at::full({}, 2.5f);
  expect_equal(problem, "given amax");
  problem = make_problem(at::randn({32, 64}).to(at::kBFloat16), {}, false);
  expect_equal(problem, "bf16");
  problem.x = problem.x.t().contiguous();
  problem.transposed = true;
  expect_equal(problem, "transposed");
}

}  // namespace
}  // namespace longspur::ops
