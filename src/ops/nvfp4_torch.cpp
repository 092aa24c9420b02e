// NVFP4 from torch's elementwise operations, on any device: for devices without kernels of ours.
// The same bits as kernels/nvfp4, since every step is one fp32 operation rounded on its own. Two
// traps: CUDA divides by a scalar by multiplying with its reciprocal, so divisors are tensors; and
// products that feed sums stay separate operations, so that nothing is contracted.
//
// Blocks are [G, C, E]: E = 16 elements that share a scale, or the 256 of a tile, row by row.
#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>

#include <cmath>
#include <limits>
#include <vector>

#include "kernels/nvfp4/codec.h"
#include "ops/nvfp4_impl.h"

namespace longspur::ops {

namespace {

namespace kernel = kernels::nvfp4;

constexpr int64_t kBlock = kernel::kBlock;
constexpr double kFloatMax = std::numeric_limits<float>::max();

at::Tensor constant(double value, const at::Tensor& like) {
  return at::full({}, value, like.options().dtype(at::kFloat));
}

at::Tensor zero_where(const at::Tensor& condition, const at::Tensor& x) {
  return at::where(condition, at::zeros({}, x.options()), x);
}

// [..., 16] rotated: hadamard16 of kernels/nvfp4, the same additions in the same order.
at::Tensor rotated(const at::Tensor& x) {
  constexpr uint32_t kNegative = 0xd7e8;
  std::vector<float> signs;
  for (int k = 0; k < kBlock; ++k) signs.push_back(kNegative >> k & 1 ? -1.0f : 1.0f);
  at::Tensor y = x * at::tensor(signs, at::kFloat).to(x.device());
  const std::vector<int64_t> shape = x.sizes().vec();
  for (int64_t half = 1; half < kBlock; half *= 2) {
    const at::Tensor pairs = y.reshape({-1, kBlock / (2 * half), 2, half});
    const at::Tensor a = pairs.select(2, 0), b = pairs.select(2, 1);
    y = at::stack({a + b, a - b}, 2).reshape(shape);
  }
  return (y * 0.25).to(at::kBFloat16).to(at::kFloat);
}

// [rows, K] to blocks [G, C, E].
at::Tensor as_blocks(const at::Tensor& x, bool tile_2d) {
  const int64_t rows = x.size(0), columns = x.size(1) / kBlock;
  if (!tile_2d) return x.reshape({rows, columns, kBlock});
  return x.reshape({rows / kBlock, kBlock, columns, kBlock})
      .permute({0, 2, 1, 3})
      .reshape({rows / kBlock, columns, kBlock * kBlock});
}

// And back.
at::Tensor as_rows(const at::Tensor& blocks, bool tile_2d) {
  const int64_t groups = blocks.size(0), columns = blocks.size(1);
  if (!tile_2d) return blocks.reshape({groups, columns * kBlock});
  return blocks.reshape({groups, columns, kBlock, kBlock})
      .permute({0, 2, 1, 3})
      .reshape({groups * kBlock, columns * kBlock});
}

// Nearest E4M3 codes of x >= 0, as int32.
at::Tensor e4m3_codes(const at::Tensor& x) {
  return x.clamp_max(kernel::kE4m3Max).to(at::kFloat8_e4m3fn).view(at::kByte).to(at::kInt);
}
at::Tensor e4m3_values(const at::Tensor& codes) {
  return codes.to(at::kByte).view(at::kFloat8_e4m3fn).to(at::kFloat);
}

// The grid around magnitudes a <= 8: distance of its points, and the code of the point at n
// distances less n.
struct GridStep {
  at::Tensor step, offset;
};
GridStep grid_at(const at::Tensor& a) {
  const at::Tensor from2 = (a >= 2.0).to(at::kFloat), from4 = (a >= 4.0).to(at::kFloat);
  return {0.5 + from2 * 0.5 + from4, (from2 + from4) * 2.0};
}

// Magnitude codes 0 .. 7 of x, as floats.
at::Tensor nearest_codes(const at::Tensor& x) {
  const at::Tensor a = x.abs().clamp_max(8.0);
  const GridStep grid = grid_at(a);
  return (at::round(a / grid.step) + grid.offset).clamp_max(7.0);
}

// As nearest_codes, to the upper neighbour where `uniform` is below the share of the way there.
at::Tensor stochastic_codes(const at::Tensor& x, const at::Tensor& uniform) {
  const at::Tensor a = x.abs().clamp_max(kernel::kE2m1Max);
  const GridStep grid = grid_at(a);
  const at::Tensor below = at::floor(a / grid.step);
  const at::Tensor share = (a - below * grid.step) / grid.step;
  return below + grid.offset + (uniform < share).to(at::kFloat);
}

// Values of magnitude codes.
at::Tensor code_values(const at::Tensor& codes) {
  const at::Tensor low = codes * 0.5;                               // 0 .. 1.5, and 2 of code 4
  const at::Tensor middle = codes - 2.0, high = codes * 2.0 - 8.0;  // 2 .. 4, 4 and 6
  return at::where(codes <= 4.0, low, at::where(codes <= 6.0, middle, high));
}

// Draws of Philox4x32-10 (base/rng.h) with counters 0 .. count - 1, four uniforms each: [count, 4].
at::Tensor philox_uniforms(uint64_t seed, int64_t count, const at::Tensor& like) {
  const auto options = like.options().dtype(at::kLong);
  const int64_t low32 = 0xffffffff;
  at::Tensor c0 = at::arange(count, options), c2 = at::zeros({count}, options);
  at::Tensor c1 = at::__rshift__(c0, 32), c3 = c2;
  c0 = at::bitwise_and(c0, low32);
  auto key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    // products of 64 bits wrap around in int64 as they do in uint64
    const at::Tensor p0 = c0 * int64_t{0xD2511F53}, p1 = c2 * int64_t{0xCD9E8D57};
    const auto high = [&](const at::Tensor& p) {
      return at::bitwise_and(at::__rshift__(p, 32), low32);
    };
    c0 = at::bitwise_xor(at::bitwise_xor(high(p1), c1), int64_t{key0});
    c1 = at::bitwise_and(p1, low32);
    c2 = at::bitwise_xor(at::bitwise_xor(high(p0), c3), int64_t{key1});
    c3 = at::bitwise_and(p0, low32);
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return at::__rshift__(at::stack({c0, c1, c2, c3}, 1), 8).to(at::kFloat) * 0x1p-24;
}

// What is quantised, and what its amax fixes. All but x broadcast to [G, C].
struct Encoding {
  at::Tensor x;                    // [G, C, E], zero in blocks that are not finite
  at::Tensor bad;                  // blocks that are not finite
  at::Tensor weight;               // [C, E] or undefined
  at::Tensor amax, top, enc, dec;  // enc of the block scales, dec of the elements
};

at::Tensor inverse(const Encoding& e, const at::Tensor& scale) {
  const at::Tensor step = e.dec * scale;
  return zero_where(step == 0.0, (constant(1, step) / step).clamp_max(kFloatMax));
}

// Error of each block with these scales, added up in the order of the elements.
at::Tensor block_errors(const Encoding& e, kernel::Metric metric, const at::Tensor& scale) {
  const at::Tensor values = code_values(nearest_codes(e.x * inverse(e, scale).unsqueeze(-1)));
  const at::Tensor signed_values = at::where(e.x < 0.0, -values, values);
  const at::Tensor decoded = signed_values * scale.unsqueeze(-1) * e.amax.unsqueeze(-1) / e.top;
  const at::Tensor difference = decoded - e.x;
  at::Tensor error = metric == kernel::Metric::kMse ? difference * difference : difference.abs();
  if (e.weight.defined()) error = error * e.weight;
  if (metric == kernel::Metric::kAbsMax) return error.amax(-1);
  at::Tensor sum = at::zeros_like(scale);
  for (int64_t i = 0; i < error.size(-1); ++i) sum = sum + error.select(-1, i);
  return sum;
}

// Codes of the scales to try, the first wins ties.
std::vector<at::Tensor> candidates(kernel::Rule rule, const at::Tensor& bmax, const Encoding& e) {
  if (rule == kernel::Rule::kStatic4) return {e4m3_codes(bmax / constant(4, bmax) * e.enc)};
  const at::Tensor b = bmax / constant(6, bmax) * e.enc, plain = e4m3_codes(b);
  if (rule == kernel::Rule::kStatic6) return {plain};
  if (rule == kernel::Rule::kFourOverSix) return {plain, e4m3_codes(b * 1.5)};
  const std::vector<int> offsets = rule == kernel::Rule::kSweep
                                       ? std::vector<int>{0, -1, 1, 4, 5}
                                       : std::vector<int>{0, -3, -2, -1, 1, 2, 3, 4, 5, 6, 7};
  std::vector<at::Tensor> codes;
  for (const int offset : offsets)
    codes.push_back((plain + offset).clamp(0, int{kernel::kE4m3MaxCode}));
  return codes;
}

// The chosen scale codes [G, C]; kE4m3Nan where the block is not finite.
at::Tensor choose_scales(const Encoding& e, const kernel::Recipe& recipe) {
  const std::vector<at::Tensor> codes = candidates(recipe.rule, e.x.abs().amax(-1), e);
  at::Tensor best = codes.front();
  if (codes.size() > 1) {
    at::Tensor least = block_errors(e, recipe.metric, e4m3_values(best));
    for (size_t i = 1; i < codes.size(); ++i) {
      const at::Tensor error = block_errors(e, recipe.metric, e4m3_values(codes[i]));
      const at::Tensor better = error < least;
      best = at::where(better, codes[i], best);
      least = at::where(better, error, least);
    }
  }
  return best.masked_fill(e.bad, int{kernel::kE4m3Nan});
}

Encoding encoding_of(const Nvfp4QuantizeProblem& problem, at::Tensor x, at::Tensor amax) {
  const bool tile_2d = problem.recipe.tile_2d;
  Encoding e;
  x = as_blocks(x, tile_2d);
  const at::Tensor amax_bad = amax.isfinite().logical_not();
  e.bad = x.isfinite().all(-1).logical_not().logical_or(amax_bad);
  e.x = zero_where(e.bad.unsqueeze(-1), x);
  e.amax = zero_where(amax_bad, amax);
  e.top = constant(kernel::scale_top(problem.recipe), amax);
  const at::Tensor one = constant(1, amax);
  const auto encode_factor = [&](const at::Tensor& top) {
    return at::where(e.amax == 0.0, one, top / e.amax).clamp_max(kFloatMax);
  };
  e.enc = encode_factor(constant(kernel::scale_target(problem.recipe), amax));
  e.dec = one / encode_factor(e.top);
  if (problem.importance.defined()) {
    e.weight = problem.importance.view({-1, kBlock});
    if (tile_2d) e.weight = e.weight.repeat({1, kBlock});
  }
  return e;
}

at::Tensor signed_codes(const Nvfp4QuantizeProblem& problem,
                        const Encoding& e,
                        const at::Tensor& scales) {
  const at::Tensor usable = zero_where(e.bad, e4m3_values(scales.masked_fill(e.bad, 0)));
  const at::Tensor scaled = e.x * inverse(e, usable).unsqueeze(-1);
  const bool nearest = problem.recipe.rounding == kernel::Rounding::kNearest;
  const auto uniforms = [&] {
    const int64_t draws = problem.rows * problem.k / 4;
    const at::Tensor drawn = philox_uniforms(problem.recipe.seed, draws, e.x);
    return as_blocks(drawn.view({problem.rows, problem.k}), problem.recipe.tile_2d);
  };
  const at::Tensor magnitude =
      (nearest ? nearest_codes(scaled) : stochastic_codes(scaled, uniforms())).to(at::kInt);
  return at::where((scaled < 0.0).logical_and(magnitude > 0), magnitude + 8, magnitude);
}

bool quantize_accepts(const Nvfp4QuantizeProblem&) { return true; }
bool dequantize_accepts(const Nvfp4DequantizeProblem&) { return true; }

// x as it is quantised: [rows, K] fp32, rotated.
at::Tensor values(const Nvfp4QuantizeProblem& problem) {
  const at::Tensor x = (problem.transposed ? problem.x.t() : problem.x).to(at::kFloat).contiguous();
  return problem.recipe.hadamard ? rotated(x.view({problem.rows, -1, kBlock})).view_as(x) : x;
}

void quantize(const Nvfp4QuantizeProblem& problem) {
  const kernel::Recipe& recipe = problem.recipe;
  const at::Tensor x = values(problem);
  at::Tensor amax = problem.amax;
  if (!amax.defined()) amax = problem.per_row ? x.abs().amax(1) : x.abs().max();
  if (problem.per_row) amax = amax.view({-1, 1});
  const Encoding e = encoding_of(problem, x, amax);
  const at::Tensor scales = choose_scales(e, recipe);
  const at::Tensor codes = as_rows(signed_codes(problem, e, scales), recipe.tile_2d);
  const at::Tensor pairs = codes.view({problem.rows, problem.k / 2, 2});
  problem.codes.copy_(pairs.select(2, 0) + pairs.select(2, 1) * 16);
  problem.scales.copy_(recipe.tile_2d ? scales.repeat_interleave(kBlock, 0) : scales);
  const at::Tensor multiplier = e.amax / e.top;
  problem.tensor_scale.copy_(
      multiplier.masked_fill(amax.isfinite().logical_not(), NAN).reshape({-1}));
}

void dequantize(const Nvfp4DequantizeProblem& problem) {
  std::vector<float> values;
  for (uint32_t code = 0; code < 16; ++code) values.push_back(kernel::e2m1_decode(code));
  const at::Tensor table = at::tensor(values, at::kFloat).to(problem.codes.device());
  const at::Tensor low = at::bitwise_and(problem.codes, 15);
  const at::Tensor high = at::__rshift__(problem.codes, 4);
  const at::Tensor codes = at::stack({low, high}, -1).to(at::kInt);
  const at::Tensor scale = e4m3_values(at::bitwise_and(problem.scales, 0x7f));
  const at::Tensor blocks =
      table.index_select(0, codes.reshape({-1})).view({problem.rows, problem.k / kBlock, kBlock}) *
      scale.unsqueeze(-1);
  problem.out.copy_(blocks.view({problem.rows, problem.k}) * problem.tensor_scale.unsqueeze(-1));
}

}  // namespace

const Nvfp4Implementation kNvfp4Torch = {"torch", quantize_accepts, quantize, dequantize_accepts,
                                         dequantize};

}  // namespace longspur::ops
