// Mixed precision on a budget: which products stay in high precision so that the others' errors
// harm the predictions least.
//
// Sensitivity of a product is measured, not estimated: mean KL divergence of the model with this
// product alone quantised from the original, on the first tokens of the calibration text. All of
// them go through the model in one pass, as sequences of one batch that grows by four at each
// layer. The sum over products stands for the divergence of the whole, and a knapsack finds the set
// to keep.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "quant/convert.h"

namespace longspur::quant {

using SiteCosts = std::array<double, kSites>;

// kProbeTokens of the first window are used. Costs of each layer's sites, in nats.
inline constexpr int64_t kProbeTokens = 512;
std::vector<SiteCosts> measure_sensitivity(const FloatDecoder& decoder,
                                           const models::DecoderTensors& tensors,
                                           std::span<const std::vector<int32_t>> windows,
                                           const Conversion& conversion,
                                           const Progress& progress);

struct BudgetItem {
  double cost = 0;  // of quantising it
  int64_t weights = 0;
};
// Which items to keep at kept_bits so that all of them average at most `bits`, the others at
// `quantised_bits`: the kept ones' cost is the largest possible (sizes that share no large divisor
// are rounded up first, by 1 / 16384 of the room at most). Throws Error when `bits` is below
// quantised_bits.
std::vector<bool> plan_budget(std::span<const BudgetItem> items,
                              double bits,
                              double quantised_bits,
                              double kept_bits);

// The same for a model: sensitivities and sizes of its sites.
std::vector<KeptSites> plan_model_budget(const models::DecoderTensors& tensors,
                                         std::span<const SiteCosts> costs,
                                         double bits,
                                         double quantised_bits,
                                         double kept_bits);

}  // namespace longspur::quant
