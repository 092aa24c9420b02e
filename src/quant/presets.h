// The methods by name, each a conversion: what `longspur quantize --method` and the quality bench
// mean by them.
#pragma once

#include <optional>
#include <string_view>

#include "quant/convert.h"

namespace longspur::quant {

enum class Method { kRtn, kGptq, kAwq, kSmoothQuant, kBest };

// "rtn", "gptq", "awq", "smoothquant", "best"; UsageError on other names.
Method parse_method(std::string_view name);
bool needs_calibration(Method method);

// rule: empty for the method's own choice.
Conversion preset(Method method,
                  std::optional<kernels::nvfp4::Rule> rule,
                  kernels::nvfp4::Metric metric,
                  bool calibrated);

}  // namespace longspur::quant
