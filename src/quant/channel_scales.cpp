#include "quant/channel_scales.h"

#include <algorithm>
#include <cmath>
#include <map>

#include "base/error.h"
#include "base/shape.h"
#include "kernels/nvfp4/codec.h"
#include "quant/lanes.h"

namespace longspur::quant {

namespace nvfp4 = kernels::nvfp4;

namespace {

void check(std::span<const WeightView> linears,
           const ChannelInputs& inputs,
           const ChannelScaleSearch& search) {
  require(!linears.empty(), "channel scales: found no matrix, expected at least one");
  require(inputs.k > 0 && inputs.k % kBlock == 0, "channel scales: found ", inputs.k,
          " channels, expected a multiple of ", kBlock);
  for (const WeightView& w : linears) {
    require(w.k == inputs.k, "channel scales: found a matrix of ", w.k,
            " columns, expected the inputs' ", inputs.k);
  }
  require(inputs.rows > 0 && inputs.sample != nullptr,
          "channel scales: found no sample of the inputs, expected at least one row");
  const bool awq = search.kind == ChannelScaleSearch::Kind::kAwq;
  require((awq ? inputs.mean : inputs.absmax) != nullptr,
          "channel scales: found no sizes of the channels, expected them from the calibration");
  require(search.steps > 0, "channel scales: found ", search.steps, " steps, expected at least 1");
  require(inputs.tied.empty() || int64_t(inputs.tied.size()) == inputs.k, "channel scales: found ",
          inputs.tied.size(), " ties, expected ", inputs.k);
}

// Tied channels take the geometric mean; then the whole is divided by its own.
void settle(std::vector<double>& logs, std::span<const int32_t> tied) {
  if (!tied.empty()) {
    std::map<int32_t, std::pair<double, int>> groups;
    for (size_t i = 0; i < logs.size(); ++i) {
      groups[tied[i]].first += logs[i];
      ++groups[tied[i]].second;
    }
    for (size_t i = 0; i < logs.size(); ++i)
      logs[i] = groups[tied[i]].first / groups[tied[i]].second;
  }
  double mean = 0;
  for (const double x : logs) mean += x / double(logs.size());
  for (double& x : logs) x -= mean;
}

// The output of all matrices on the sample, sixteen of their rows a piece.
class OutputError {
 public:
  OutputError(std::span<const WeightView> linears,
              const ChannelInputs& inputs,
              const ChannelScaleSearch& search,
              ThreadPool& pool)
      : linears_(linears), inputs_(inputs), search_(search), pool_(pool) {
    for (const WeightView& w : linears) {
      for (int64_t row = 0; row < w.n; row += kLanes) pieces_.push_back({&w - linears.data(), row});
    }
    losses_.resize(pieces_.size());
    reference_.resize(pieces_.size() * size_t(inputs.rows * kLanes));
    const std::vector<float> x =
        columns_of({inputs.sample, inputs.sample + inputs.rows * inputs.k});
    for_each_piece(
        x,
        [&](size_t piece, const float* out) {
          std::copy(out, out + inputs_.rows * kLanes, reference_of(piece));
          losses_[piece] = square_sum(out);
        },
        [&](const WeightView& w) { return w.values; });
    total_ = sum();
  }

  // Relative squared error with these scales.
  double of(const std::vector<float>& scale) {
    const std::vector<float> x = columns_of(scaled_inputs(scale));
    const std::vector<std::vector<float>> rounded = rounded_weights(scale);
    for_each_piece(
        x,
        [&](size_t piece, float* out) {
          const float* reference = reference_of(piece);
          for (int64_t i = 0; i < inputs_.rows * kLanes; ++i) out[i] -= reference[i];
          losses_[piece] = square_sum(out);
        },
        [&](const WeightView& w) { return rounded[size_t(&w - linears_.data())].data(); });
    return total_ > 0 ? sum() / total_ : 0.0;
  }

 private:
  struct Piece {
    int64_t linear, row;
  };

  float* reference_of(size_t piece) {
    return reference_.data() + piece * size_t(inputs_.rows * kLanes);
  }
  double square_sum(const float* values) const {
    double sum = 0;
    for (int64_t i = 0; i < inputs_.rows * kLanes; ++i)
      sum += double(values[i]) * double(values[i]);
    return sum;
  }
  double sum() const {
    double sum = 0;
    for (const double loss : losses_) sum += loss;
    return sum;
  }

  // [rows, K] -> [K, rows]
  std::vector<float> columns_of(const std::vector<float>& x) const {
    std::vector<float> columns(x.size());
    for (int64_t row = 0; row < inputs_.rows; ++row)
      for (int64_t i = 0; i < inputs_.k; ++i)
        columns[size_t(i * inputs_.rows + row)] = x[size_t(row * inputs_.k + i)];
    return columns;
  }

  std::vector<float> scaled_inputs(const std::vector<float>& scale) const {
    std::vector<float> x(inputs_.sample, inputs_.sample + inputs_.rows * inputs_.k);
    for (int64_t row = 0; row < inputs_.rows; ++row)
      for (int64_t i = 0; i < inputs_.k; ++i) x[size_t(row * inputs_.k + i)] /= scale[size_t(i)];
    if (search_.activations == nullptr) return x;
    std::vector<float> amax(static_cast<size_t>(inputs_.rows));
    const nvfp4::Recipe& recipe = *search_.activations;
    for (int64_t row = 0; row < inputs_.rows; ++row) {
      const WeightView view{x.data() + row * inputs_.k, 1, inputs_.k};
      for (int64_t i = 0; i < view.k; ++i)
        amax[size_t(row)] = std::max(amax[size_t(row)], std::fabs(view.values[i]));
    }
    return round_all({x.data(), inputs_.rows, inputs_.k}, amax, recipe);
  }

  std::vector<std::vector<float>> rounded_weights(const std::vector<float>& scale) const {
    std::vector<std::vector<float>> result;
    float amax = 0;
    for (const WeightView& w : linears_) {
      std::vector<float>& values = result.emplace_back(w.values, w.values + w.n * w.k);
      for (int64_t i = 0; i < w.n * w.k; ++i) {
        values[size_t(i)] *= scale[size_t(i % w.k)];
        amax = std::max(amax, std::fabs(values[size_t(i)]));
      }
    }
    for (size_t i = 0; i < result.size(); ++i)
      result[i] = round_all({result[i].data(), linears_[i].n, inputs_.k}, {amax}, search_.weights);
    return result;
  }

  // Rounded to NVFP4 and read back. amax: one, or one a row.
  std::vector<float> round_all(const WeightView& x,
                               const std::vector<float>& amax,
                               const nvfp4::Recipe& recipe) const {
    std::vector<float> multiplier, out(size_t(x.n * x.k));
    for (const float a : amax) multiplier.push_back(nvfp4::tensor_scale(a, recipe));
    std::vector<uint8_t> codes(size_t(x.n * x.k / 2)), scales(size_t(x.n * x.k / kBlock));
    const bool per_row = amax.size() > 1;
    nvfp4::QuantizeArgs to;
    to.source = {x.values, DType::kF32, x.n, x.k, x.k, false};
    to.amax = amax.data();
    to.amax_per_row = per_row;
    to.recipe = recipe;
    to.codes = codes.data();
    to.scales = scales.data();
    const nvfp4::DequantizeArgs from = {codes.data(), scales.data(), multiplier.data(), per_row,
                                        x.n,          x.k,           DType::kF32,       out.data()};
    pool_.run([&](Team& team) {
      team.dynamic_for(x.n, kLanes, [&](int64_t begin, int64_t end) {
        nvfp4::quantize(to, begin, end);
        nvfp4::dequantize(from, begin, end);
      });
    });
    return out;
  }

  // Calls f(piece, values of W x [rows, lanes]) for every sixteen rows of every matrix.
  template <class F, class Values>
  void for_each_piece(const std::vector<float>& x, F&& f, Values&& values_of) {
    const auto inputs_size = size_t(inputs_.k * kLanes), size = size_t(inputs_.rows * kLanes);
    std::vector<float> scratch(size_t(pool_.size()) * (inputs_size + size));
    pool_.run([&](Team& team) {
      float* in = scratch.data() + size_t(team.rank()) * (inputs_size + size);
      float* out = in + inputs_size;
      team.dynamic_for(int64_t(pieces_.size()), 1, [&](int64_t index, int64_t) {
        const Piece& piece = pieces_[size_t(index)];
        const WeightView& w = linears_[size_t(piece.linear)];
        const float* values = values_of(w) + piece.row * w.k;
        std::fill(in, out + size, 0.0f);
        for (int64_t lane = 0; lane < std::min<int64_t>(kLanes, w.n - piece.row); ++lane)
          for (int64_t i = 0; i < w.k; ++i) in[i * kLanes + lane] = values[lane * w.k + i];
        lane_kernels().multiply(out, in, x.data(), w.k, inputs_.rows);
        f(size_t(index), out);
      });
    });
  }

  std::span<const WeightView> linears_;
  const ChannelInputs& inputs_;
  const ChannelScaleSearch& search_;
  ThreadPool& pool_;
  std::vector<Piece> pieces_;
  std::vector<float> reference_;  // [pieces, rows, lanes]
  std::vector<double> losses_;    // [pieces]
  double total_ = 0;
};

std::vector<float> largest_weights(std::span<const WeightView> linears, int64_t k) {
  std::vector<float> largest(static_cast<size_t>(k));
  for (const WeightView& w : linears)
    for (int64_t i = 0; i < w.n * k; ++i)
      largest[size_t(i % k)] = std::max(largest[size_t(i % k)], std::fabs(w.values[i]));
  return largest;
}

// A channel of zeros has no size of its own: its scale is 1 before the division by the mean.
double log_size(float x) { return x > 0 && std::isfinite(x) ? std::log(double(x)) : 0.0; }

}  // namespace

ChannelScales search_channel_scales(std::span<const WeightView> linears,
                                    const ChannelInputs& inputs,
                                    const ChannelScaleSearch& search,
                                    ThreadPool& pool) {
  check(linears, inputs, search);
  const bool awq = search.kind == ChannelScaleSearch::Kind::kAwq;
  const float* sizes = awq ? inputs.mean : inputs.absmax;
  const std::vector<float> weights = largest_weights(linears, inputs.k);
  OutputError error(linears, inputs, search, pool);
  ChannelScales best;
  best.scale.assign(size_t(inputs.k), 1.0f);
  best.plain_error = best.error = error.of(best.scale);
  for (int step = awq ? 1 : 0; step <= search.steps; ++step) {
    const double alpha = double(step) / double(search.steps);
    std::vector<double> logs;
    for (size_t i = 0; i < size_t(inputs.k); ++i)
      logs.push_back(alpha * log_size(sizes[i]) - (awq ? 0.0 : (1 - alpha) * log_size(weights[i])));
    settle(logs, inputs.tied);
    std::vector<float> scale;
    for (const double x : logs) scale.push_back(float(std::exp(std::clamp(x, -9.0, 9.0))));
    const double found = error.of(scale);
    if (!(found < best.error)) continue;
    best.scale = std::move(scale);
    best.alpha = alpha;
    best.error = found;
  }
  return best;
}

}  // namespace longspur::quant
