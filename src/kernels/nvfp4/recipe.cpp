// Names and constants of the scale rules.
#include <array>
#include <cmath>
#include <limits>
#include <string>

#include "base/error.h"
#include "kernels/nvfp4/api.h"
#include "kernels/nvfp4/codec.h"

namespace longspur::kernels::nvfp4 {

namespace {

constexpr std::array<std::string_view, 5> kRules = {"static_6", "static_4", "four_over_six",
                                                    "sweep", "full_sweep"};
constexpr std::array<std::string_view, 3> kMetrics = {"mse", "mae", "abs_max"};
constexpr std::array<std::string_view, 3> kRoundings = {"nearest", "stochastic",
                                                        "stochastic_unbiased"};

template <class Enum, size_t N>
Enum parse(const char* what, std::string_view name, const std::array<std::string_view, N>& names) {
  std::string expected;
  for (size_t i = 0; i < N; ++i) {
    if (names[i] == name) return Enum(int(i));
    expected += i == 0 ? "" : i + 1 == N ? " or " : ", ";
    expected += names[i];
  }
  throw UsageError(concat(what, ": found '", name, "', expected ", expected));
}

}  // namespace

Rule parse_rule(std::string_view name) { return parse<Rule>("rule", name, kRules); }
Metric parse_metric(std::string_view name) { return parse<Metric>("metric", name, kMetrics); }
Rounding parse_rounding(std::string_view name) {
  return parse<Rounding>("rounding", name, kRoundings);
}
std::string_view rule_name(Rule rule) { return kRules[size_t(rule)]; }
std::string_view metric_name(Metric metric) { return kMetrics[size_t(metric)]; }
std::string_view rounding_name(Rounding rounding) { return kRoundings[size_t(rounding)]; }

float scale_target(const Recipe& recipe) {
  const bool plain = recipe.rule == Rule::kStatic6 || recipe.rule == Rule::kStatic4;
  const int bound = recipe.bound != 0 ? recipe.bound : plain ? 448 : 256;
  return float((recipe.rule == Rule::kStatic4 ? 4 : 6) * bound);
}

float scale_top(const Recipe& recipe) {
  const float target = scale_target(recipe);
  return recipe.rounding == Rounding::kStochasticUnbiased ? float(target * (16.0 / 17.0)) : target;
}

float tensor_scale(float amax, const Recipe& recipe) {
  if (!std::isfinite(amax)) return std::numeric_limits<float>::quiet_NaN();
  return amax / scale_top(recipe);
}

}  // namespace longspur::kernels::nvfp4
