// The choice of thresholds from profiles: a knapsack over heads, and the recurrence of the paper.
#include <algorithm>
#include <cmath>
#include <limits>

#include "base/error.h"
#include "quant/thresholds.h"

namespace longspur::quant {

namespace {

constexpr int64_t kBinsAHead = 64;  // of the mean bound; loss moves freely between heads
constexpr int64_t kMostBins = 1 << 15;

double loss_of(const ThresholdChoice& choice, Loss loss) {
  return loss == Loss::kLost ? choice.lost : choice.error;
}

}  // namespace

std::vector<float> default_candidates() {
  return {0.0f,  0.3f, 0.5f,   0.6f,  0.7f,  0.75f,  0.8f,   0.84f,
          0.87f, 0.9f, 0.925f, 0.95f, 0.97f, 0.985f, 0.995f, 1.0f};
}

std::vector<size_t> choose_thresholds(std::span<const HeadProfile> heads, Loss loss, double bound) {
  constexpr double kNever = std::numeric_limits<double>::infinity();
  const auto count = int64_t(heads.size());
  const int64_t bins = std::min(kMostBins, count * kBinsAHead);
  const double unit = bound * double(count) / double(bins);
  // What a choice takes of the bins: none where it loses nothing. The last choice, dense or next to
  // it, is always open and takes none.
  const auto cost_of = [&](const HeadProfile& head, size_t c) -> int64_t {
    const double lost = loss_of(head.choices[c], loss);
    if (c + 1 == head.choices.size() || !(lost > 0)) return 0;
    return unit > 0 && lost / unit < double(bins) + 1 ? int64_t(std::ceil(lost / unit)) : bins + 1;
  };
  std::vector<double> best(size_t(bins + 1), 0.0);  // least density with at most so many bins
  std::vector<uint8_t> taken(size_t(count * (bins + 1)));
  for (int64_t h = 0; h < count; ++h) {
    const std::vector<ThresholdChoice>& choices = heads[size_t(h)].choices;
    require(!choices.empty() && choices.size() < 256, "head ", h, ": found ", choices.size(),
            " thresholds to choose from, expected 1 to 255");
    std::vector<double> next(size_t(bins + 1), kNever);
    uint8_t* take = taken.data() + h * (bins + 1);
    for (size_t c = 0; c < choices.size(); ++c) {
      const int64_t bins_taken = cost_of(heads[size_t(h)], c);
      for (int64_t b = bins_taken; b <= bins; ++b) {
        const double density = best[size_t(b - bins_taken)] + choices[c].density;
        if (density < next[size_t(b)]) {
          next[size_t(b)] = density;
          take[b] = uint8_t(c);
        }
      }
    }
    best = std::move(next);
  }
  std::vector<size_t> chosen(heads.size());
  for (int64_t h = count - 1, left = bins; h >= 0; --h) {
    const size_t c = taken[size_t(h * (bins + 1) + left)];
    chosen[size_t(h)] = c;
    left -= cost_of(heads[size_t(h)], c);
  }
  return chosen;
}

std::vector<PredictedThresholds> predict_minimum_thresholds(
    int64_t heads, int64_t steps, float start, float factor, const Evaluate& evaluate) {
  constexpr double kNever = -std::numeric_limits<double>::infinity();
  std::vector<PredictedThresholds> best(size_t(steps) + 1);
  best[0].thresholds.assign(size_t(heads), start);
  best[0].performance = evaluate(best[0].thresholds);
  for (int64_t m = 1; m <= steps; ++m) best[size_t(m)].performance = kNever;
  for (int64_t h = 0; h < heads; ++h) {
    // From many reductions to few, so that the state of m - 1 is still that of the heads before h.
    for (int64_t m = std::min(steps, h + 1); m > 0; --m) {
      const PredictedThresholds& from = best[size_t(m - 1)];
      if (from.thresholds.empty()) continue;
      PredictedThresholds lowered = from;
      lowered.thresholds[size_t(h)] *= factor;
      lowered.performance = evaluate(lowered.thresholds);
      if (lowered.performance > best[size_t(m)].performance) best[size_t(m)] = std::move(lowered);
    }
  }
  while (best.back().thresholds.empty()) best.pop_back();
  return best;
}

}  // namespace longspur::quant
