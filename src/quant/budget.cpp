#include "quant/budget.h"

#include <algorithm>
#include <numeric>

#include "base/error.h"
#include "base/shape.h"
#include "quant/divergence.h"

namespace longspur::quant {

namespace {

constexpr double kMaxUnits = 16384;  // of the knapsack's room; beyond, sizes are rounded up

// The original text's sequence, and one sequence for each product seen so far.
class Probe {
 public:
  Probe(const FloatDecoder& decoder, std::vector<int32_t> window)
      : decoder_(decoder), tokens_(int64_t(window.size())) {
    original_ = decoder.embed({&window, 1});
    next_.assign(window.begin() + 1, window.end());
    next_.push_back(-1);
  }

  void layer(size_t index, const LayerWeights& original, const LayerWeights& quantised) {
    ThreadPool& pool = decoder_.pool();
    const PackedLayer packed = pack_layer(original, pool);
    std::vector<Matrix> fresh;
    for (int s = 0; s < kSites; ++s) {
      LayerWeights hybrid = original;
      const RoleRange roles = roles_of(Site(s));
      for (int role = roles.begin; role < roles.end; ++role)
        hybrid.linear[size_t(role)] = quantised.linear[size_t(role)];
      FloatDecoder::Batch batch = original_;
      decoder_.run_layer(index, pack_layer(hybrid, pool), batch, {});
      fresh.push_back(std::move(batch.hidden));
    }
    if (variants_.hidden.rows > 0) decoder_.run_layer(index, packed, variants_, {});
    for (const Matrix& hidden : fresh) append(hidden);
    decoder_.run_layer(index, packed, original_, {});
  }

  std::vector<SiteCosts> costs() const {
    const Matrix reference = decoder_.logits(original_, 0, tokens_);
    std::vector<SiteCosts> result(size_t(variants_.hidden.rows / tokens_ / kSites));
    for (size_t i = 0; i < result.size() * kSites; ++i) {
      const Matrix found = decoder_.logits(variants_, int64_t(i) * tokens_, tokens_);
      result[i / kSites][i % kSites] =
          compare_logits(reference, found, next_, decoder_.pool()).mean_kl();
    }
    return result;
  }

 private:
  void append(const Matrix& hidden) {
    Matrix& all = variants_.hidden;
    if (variants_.cu_seqlens.empty()) variants_.cu_seqlens.push_back(0);
    all.width = hidden.width;
    all.rows += hidden.rows;
    all.values.insert(all.values.end(), hidden.values.begin(), hidden.values.end());
    variants_.cu_seqlens.push_back(int32_t(all.rows));
  }

  const FloatDecoder& decoder_;
  int64_t tokens_;
  FloatDecoder::Batch original_, variants_;
  std::vector<int32_t> next_;
};

}  // namespace

std::vector<SiteCosts> measure_sensitivity(const FloatDecoder& decoder,
                                           const models::DecoderTensors& tensors,
                                           std::span<const std::vector<int32_t>> windows,
                                           const Conversion& conversion,
                                           const Progress& progress) {
  require(!windows.empty() && !windows[0].empty(),
          "sensitivity: found no calibration text, expected at least one window");
  std::vector<int32_t> window = windows[0];
  window.resize(std::min(window.size(), size_t(kProbeTokens)));
  Probe probe(decoder, std::move(window));
  Conversion all = conversion;
  all.kept.clear();
  convert_layers(
      decoder, tensors, windows, {&all, 1},
      [&](size_t, size_t layer, const LayerWeights& original, ConvertedLayer&& converted) {
        probe.layer(layer, original,
                    read_back_unfolded(decoder.config(), converted, decoder.pool()));
      },
      progress);
  return probe.costs();
}

std::vector<bool> plan_budget(std::span<const BudgetItem> items,
                              double bits,
                              double quantised_bits,
                              double kept_bits) {
  require(bits >= quantised_bits, "budget: found ", bits, " bits a weight, expected at least ",
          quantised_bits);
  std::vector<bool> kept(items.size(), false);
  int64_t weights = 0, unit = 0;
  for (const BudgetItem& item : items) {
    weights += item.weights;
    unit = std::gcd(unit, item.weights);
  }
  if (unit == 0) return kept;
  // Weights that may be kept; a hair more, since the bits of a budget are no whole numbers.
  const double room = std::min(1.0, (bits - quantised_bits) / (kept_bits - quantised_bits) + 1e-9) *
                      double(weights);
  while (room / double(unit) > kMaxUnits) unit *= 2;
  const auto units = int64_t(room / double(unit));
  const auto need = [&](size_t i) { return ceil_div(items[i].weights, unit); };
  // best[i][r]: the largest cost avoided with the first i items in r units of room
  std::vector<std::vector<double>> best(items.size() + 1,
                                        std::vector<double>(size_t(units + 1), 0.0));
  for (size_t i = 0; i < items.size(); ++i) {
    for (int64_t r = 0; r <= units; ++r) {
      double value = best[i][size_t(r)];
      if (need(i) <= r) value = std::max(value, best[i][size_t(r - need(i))] + items[i].cost);
      best[i + 1][size_t(r)] = value;
    }
  }
  int64_t left = units;
  for (size_t i = items.size(); i-- > 0;) {
    if (best[i + 1][size_t(left)] == best[i][size_t(left)]) continue;
    kept[i] = true;
    left -= need(i);
  }
  return kept;
}

std::vector<KeptSites> plan_model_budget(const models::DecoderTensors& tensors,
                                         std::span<const SiteCosts> costs,
                                         double bits,
                                         double quantised_bits,
                                         double kept_bits) {
  LONGSPUR_ASSERT(costs.size() == tensors.layers.size());
  std::vector<BudgetItem> items;
  for (size_t layer = 0; layer < costs.size(); ++layer) {
    for (int s = 0; s < kSites; ++s) {
      BudgetItem& item = items.emplace_back(BudgetItem{costs[layer][size_t(s)], 0});
      const RoleRange roles = roles_of(Site(s));
      for (int role = roles.begin; role < roles.end; ++role) {
        const models::TensorSource& source = source_of(tensors.layers[layer], Role(role));
        item.weights += source.n() * source.k();
      }
    }
  }
  const std::vector<bool> chosen = plan_budget(items, bits, quantised_bits, kept_bits);
  std::vector<KeptSites> kept(costs.size());
  for (size_t i = 0; i < chosen.size(); ++i) kept[i / kSites][i % kSites] = chosen[i];
  return kept;
}

}  // namespace longspur::quant
