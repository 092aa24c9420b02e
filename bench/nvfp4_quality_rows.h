// The rows of the quality table: how weights are converted, with which text, what activations are
// rounded to.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "kernels/nvfp4/api.h"
#include "quant/convert.h"

namespace longspur::bench {

struct QualityConversion {
  std::string name;         // "gptq_sweep.licence"
  std::string calibration;  // "", "same" or "licence"
  quant::Conversion conversion;
  double budget_bits = 0;  // mixed precision with Q8_0; 0: all NVFP4
};

struct QualityRow {
  std::string name;     // "W4A4 gptq_sweep.same / sweep"
  std::string weights;  // a conversion's name; "fp32": the original
  std::optional<kernels::nvfp4::Recipe> activations;
};

struct QualityTable {
  std::vector<QualityConversion> conversions;
  std::vector<QualityRow> rows;
};
QualityTable quality_table();

}  // namespace longspur::bench
