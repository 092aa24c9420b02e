// Relative error sum (q - x)^2 / sum x^2 of each scale rule on random numbers of five
// distributions, two square bf16 matrices with their own largest magnitude, blocks of 16. Prints
// one JSON object.
//   nvfp4_error [size, default 1024]
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <numbers>
#include <string>
#include <vector>

#include "base/half.h"
#include "base/rng.h"
#include "kernels/nvfp4/api.h"

namespace {

using namespace longspur;
using namespace longspur::kernels::nvfp4;

// Uniform in (0, 1) with 32 bits.
double uniform(Noise& noise) { return (double(noise.bits()) + 0.5) * 0x1p-32; }

double normal(Noise& noise) {
  const double radius = std::sqrt(-2 * std::log(uniform(noise)));
  return radius * std::cos(2 * std::numbers::pi * uniform(noise));
}

double laplace(Noise& noise) {
  const double u = uniform(noise) - 0.5;
  return (u < 0 ? 1 : -1) * std::log(1 - 2 * std::fabs(u));
}

double student(Noise& noise, int freedom) {
  double squares = 0;
  for (int i = 0; i < freedom; ++i) squares += std::pow(normal(noise), 2);
  return normal(noise) / std::sqrt(squares / freedom);
}

struct Distribution {
  const char* name;
  std::function<double(Noise&)> draw;
};
const Distribution kDistributions[] = {
    {"gaussian", normal},
    {"laplace", laplace},
    {"t5", [](Noise& noise) { return student(noise, 5); }},
    {"t3", [](Noise& noise) { return student(noise, 3); }},
    {"uniform", [](Noise& noise) { return 2 * uniform(noise) - 1; }},
};

struct Method {
  std::string name;
  Recipe recipe;
};

std::vector<Method> methods() {
  std::vector<Method> all;
  const auto add = [&](const char* suffix, Recipe recipe) {
    all.push_back({std::string(rule_name(recipe.rule)) + suffix, recipe});
  };
  add("", {Rule::kStatic6});
  add("", {Rule::kStatic4});
  add(" mse", {Rule::kFourOverSix});
  add(" mae", {Rule::kFourOverSix, Metric::kMae});
  add(" abs_max", {Rule::kFourOverSix, Metric::kAbsMax});
  Recipe saturating{Rule::kFourOverSix};
  saturating.bound = 448;
  add(" mse bound 448", saturating);
  add("", {Rule::kSweep});
  add("", {Rule::kFullSweep});
  add(" tile_2d", {Rule::kStatic6, Metric::kMse, true});
  add(" mse tile_2d", {Rule::kFourOverSix, Metric::kMse, true});
  add(" abs_max tile_2d", {Rule::kFourOverSix, Metric::kAbsMax, true});
  add(" tile_2d", {Rule::kFullSweep, Metric::kMse, true});
  for (const Rounding rounding : {Rounding::kStochastic, Rounding::kStochasticUnbiased}) {
    for (const Rule rule : {Rule::kStatic6, Rule::kFourOverSix}) {
      Recipe recipe{rule};
      recipe.rounding = rounding;
      add(rounding == Rounding::kStochastic ? " stochastic" : " stochastic_unbiased", recipe);
    }
  }
  return all;
}

struct Sums {
  double error = 0, size = 0;
};

void add_error(const std::vector<uint16_t>& x, int64_t n, const Recipe& recipe, Sums& sums) {
  QuantizeArgs args;
  args.source = {x.data(), DType::kBF16, n, n, n, false};
  const float amax = max_magnitude(args.source, false, 0, n, nullptr);
  const float multiplier = tensor_scale(amax, recipe);
  std::vector<uint8_t> codes(size_t(n * n / 2)), scales(size_t(n * n / 16));
  args.amax = &amax;
  args.recipe = recipe;
  args.codes = codes.data();
  args.scales = scales.data();
  quantize(args, 0, n);
  std::vector<float> back(x.size());
  dequantize({codes.data(), scales.data(), &multiplier, false, n, n, DType::kF32, back.data()}, 0,
             n);
  for (size_t i = 0; i < x.size(); ++i) {
    const double value = double(bf16_to_float(x[i]));
    sums.error += std::pow(double(back[i]) - value, 2);
    sums.size += value * value;
  }
}

void report(const Distribution& distribution, int64_t n, bool first) {
  std::vector<std::vector<uint16_t>> matrices;
  for (uint64_t seed = 1; seed <= 2; ++seed) {
    Noise noise(seed);
    std::vector<uint16_t>& x = matrices.emplace_back(size_t(n * n));
    for (uint16_t& value : x) value = float_to_bf16(float(distribution.draw(noise)));
  }
  for (const Method& method : methods()) {
    Sums sums;
    for (const auto& x : matrices) add_error(x, n, method.recipe, sums);
    // "distance": of one matrix, the norm of the error
    std::printf(
        "%s  {\"distribution\": \"%s\", \"method\": \"%s\", \"relative_mse\": %.6f, "
        "\"distance\": %.2f}",
        first ? "" : ",\n", distribution.name, method.name.c_str(), sums.error / sums.size,
        std::sqrt(sums.error / 2));
    first = false;
  }
}

}  // namespace

int main(int argc, char** argv) {
  const int64_t n = argc > 1 ? std::strtol(argv[1], nullptr, 10) / 16 * 16 : 1024;
  bool first = true;
  std::printf("{\"rows\": [\n");
  for (const Distribution& distribution : kDistributions) {
    report(distribution, n, first);
    first = false;
  }
  std::printf("\n]}\n");
}
