#include "quant/presets.h"

#include "base/error.h"

namespace longspur::quant {

namespace nvfp4 = kernels::nvfp4;

namespace {

// SmoothQuant is for rounded inputs: its search rounds them as the engine does.
const nvfp4::Recipe kInputs = {.rule = nvfp4::Rule::kSweep};

}  // namespace

Method parse_method(std::string_view name) {
  if (name == "rtn") return Method::kRtn;
  if (name == "gptq") return Method::kGptq;
  if (name == "awq") return Method::kAwq;
  if (name == "smoothquant") return Method::kSmoothQuant;
  if (name == "best") return Method::kBest;
  throw UsageError(
      concat("method: found '", name, "', expected rtn, gptq, awq, smoothquant or best"));
}

bool needs_calibration(Method method) { return method != Method::kRtn; }

Conversion preset(Method method,
                  std::optional<nvfp4::Rule> rule,
                  nvfp4::Metric metric,
                  bool calibrated) {
  Conversion conversion;
  MatrixMethod& matrix = conversion.options.matrix;
  matrix.recipe.rule = rule.value_or(calibrated ? nvfp4::Rule::kSweep : nvfp4::Rule::kFourOverSix);
  matrix.recipe.metric = metric;
  matrix.weighted = calibrated;
  switch (method) {
    case Method::kRtn:
      break;
    case Method::kGptq:
      matrix.kind = Kind::kGptq;
      break;
    case Method::kAwq:
      conversion.options.scales = ChannelScaleSearch::Kind::kAwq;
      break;
    case Method::kSmoothQuant:
      conversion.options.scales = ChannelScaleSearch::Kind::kSmoothQuant;
      conversion.options.activations = &kInputs;
      break;
    case Method::kBest:
      matrix = best_method();
      if (rule) matrix.recipe.rule = *rule;
      matrix.shrinkage = 0.3;
      conversion.options.retarget = 1.0;
      conversion.sequential = true;
      break;
  }
  return conversion;
}

}  // namespace longspur::quant
