#include "nvfp4_quality_rows.h"

#include <utility>

#include "quant/presets.h"

namespace longspur::bench {

namespace nvfp4 = kernels::nvfp4;
using nvfp4::Metric;
using nvfp4::Rule;
using quant::Method;

namespace {

constexpr const char* kTexts[] = {"same", "licence"};

nvfp4::Recipe recipe(Rule rule, Metric metric = Metric::kMse) {
  nvfp4::Recipe result;
  result.rule = rule;
  result.metric = metric;
  return result;
}

class Table {
 public:
  void plain(const std::string& name, Rule rule, Metric metric = Metric::kMse) {
    add({name, "", quant::preset(Method::kRtn, rule, metric, false), 0});
  }
  // One conversion for each calibration text.
  void calibrated(const std::string& name, const quant::Conversion& conversion, double bits = 0) {
    for (const char* text : kTexts) add({name + "." + text, text, conversion, bits});
  }
  void activations(const std::string& weights, const std::string& name, nvfp4::Recipe recipe) {
    table_.rows.push_back({"W4A4 " + weights + " / " + name, weights, recipe});
  }
  void calibrated_activations(const std::string& weights,
                              const std::string& name,
                              nvfp4::Recipe recipe) {
    for (const char* text : kTexts) activations(weights + "." + text, name, recipe);
  }
  QualityTable take() { return std::move(table_); }

 private:
  void add(QualityConversion conversion) {
    table_.rows.push_back({"W4A16 " + conversion.name, conversion.name, std::nullopt});
    table_.conversions.push_back(std::move(conversion));
  }

  QualityTable table_;
};

void add_weights(Table& table) {
  table.plain("static_6", Rule::kStatic6);
  table.plain("four_over_six", Rule::kFourOverSix);
  table.plain("four_over_six_mae", Rule::kFourOverSix, Metric::kMae);
  table.plain("four_over_six_abs_max", Rule::kFourOverSix, Metric::kAbsMax);
  table.plain("sweep", Rule::kSweep);
  table.plain("full_sweep", Rule::kFullSweep);
  const auto preset = [](Method method, Rule rule) {
    return quant::preset(method, rule, Metric::kMse, true);
  };
  quant::Conversion group_start = preset(Method::kGptq, Rule::kFourOverSix);
  group_start.options.matrix.choice = quant::ScaleChoice::kGroupStart;
  const quant::Conversion best = quant::preset(Method::kBest, std::nullopt, Metric::kMse, true);
  table.calibrated("weighted_sweep", preset(Method::kRtn, Rule::kSweep));
  table.calibrated("gptq_static_6", preset(Method::kGptq, Rule::kStatic6));
  table.calibrated("gptq_four_over_six_start", group_start);
  table.calibrated("gptq_four_over_six", preset(Method::kGptq, Rule::kFourOverSix));
  table.calibrated("gptq_sweep", preset(Method::kGptq, Rule::kSweep));
  table.calibrated("awq", preset(Method::kAwq, Rule::kSweep));
  table.calibrated("smoothquant", preset(Method::kSmoothQuant, Rule::kSweep));
  table.calibrated("best", best);
  table.calibrated("best_5_bits", best, 5.0);
}

void add_activations(Table& table) {
  const nvfp4::Recipe static_6 = recipe(Rule::kStatic6), mse = recipe(Rule::kFourOverSix),
                      sweep = recipe(Rule::kSweep);
  table.activations("static_6", "static_6", static_6);
  table.activations("four_over_six", "four_over_six", mse);
  table.activations("four_over_six_mae", "four_over_six_mae",
                    recipe(Rule::kFourOverSix, Metric::kMae));
  table.activations("four_over_six_abs_max", "four_over_six_abs_max",
                    recipe(Rule::kFourOverSix, Metric::kAbsMax));
  table.activations("sweep", "sweep", sweep);
  table.activations("full_sweep", "full_sweep", recipe(Rule::kFullSweep));
  table.calibrated_activations("weighted_sweep", "sweep", sweep);
  table.calibrated_activations("gptq_static_6", "static_6", static_6);
  table.calibrated_activations("gptq_four_over_six", "four_over_six", mse);
  table.calibrated_activations("gptq_sweep", "sweep", sweep);
  table.calibrated_activations("awq", "sweep", sweep);
  table.calibrated_activations("smoothquant", "sweep", sweep);
  table.calibrated_activations("best", "sweep", sweep);
  table.activations("fp32", "static_6", static_6);
  table.activations("fp32", "four_over_six", mse);
  table.activations("fp32", "sweep", sweep);
}

}  // namespace

QualityTable quality_table() {
  Table table;
  add_weights(table);
  add_activations(table);
  return table.take();
}

}  // namespace longspur::bench
