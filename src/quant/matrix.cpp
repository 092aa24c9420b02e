#include "quant/matrix.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/error.h"
#include "base/shape.h"
#include "kernels/nvfp4/codec.h"
#include "quant/lanes.h"

namespace longspur::quant {

namespace nvfp4 = kernels::nvfp4;

namespace {

constexpr int64_t kGrain = 16;  // rows a thread takes at once; the height of a 2-D tile

void check_shape(const WeightView& w) {
  require(w.k > 0 && w.k % kBlock == 0, "matrix to quantise: found rows of ", w.k,
          " weights, expected a multiple of ", kBlock);
  require(w.n >= 0, "matrix to quantise: found ", w.n, " rows, expected 0 or more");
}

void check_curvature(const WeightView& w, const Curvature* curvature, const MatrixMethod& method) {
  const bool descends = method.kind == Kind::kGptq || method.refine > 0;
  require(
      curvature != nullptr || !(descends || method.weighted),
      "matrix to quantise: found no calibration, expected some for a method that weighs errors");
  if (curvature == nullptr) return;
  require(curvature->k() == w.k, "matrix to quantise: found rows of ", w.k,
          " weights and calibration of ", curvature->k(), " channels, expected as many");
  const bool factored = method.kind != Kind::kGptq || !curvature->factor().empty();
  const bool ordered =
      method.kind != Kind::kGptq || method.act_order == !curvature->order().empty();
  require(!descends || (!curvature->gram().empty() && factored && ordered),
          "matrix to quantise: found calibration prepared for another method, expected this one's");
}

// What the methods beyond plain rounding ask for.
void check_descent(const WeightView& w, float amax, const nvfp4::Recipe& recipe) {
  require(
      recipe.rounding == nvfp4::Rounding::kNearest && !recipe.tile_2d && !recipe.hadamard,
      "gptq and refine: found stochastic rounding, 2-D tiles or a rotation, expected rounding to "
      "the nearest in blocks along K");
  require(std::isfinite(amax) && amax >= 0, "matrix to quantise: found amax ", amax,
          ", expected a finite number, not negative");
  for (int64_t i = 0; i < w.n * w.k; ++i) {
    require(std::isfinite(w.values[i]), "matrix to quantise: found ", w.values[i], " in row ",
            i / w.k, ", column ", i % w.k, ", expected finite weights");
  }
}

TensorScale tensor_scale_of(float amax, const nvfp4::Recipe& recipe) {
  TensorScale scale;
  scale.amax = amax;
  scale.top = nvfp4::scale_top(recipe);
  scale.enc = std::min(scale.top / amax, std::numeric_limits<float>::max());
  scale.dec = 1.0f / scale.enc;
  scale.multiplier = nvfp4::tensor_scale(amax, recipe);
  return scale;
}

void round_to_nearest(const WeightView& w,
                      float amax,
                      const float* importance,
                      const nvfp4::Recipe& recipe,
                      ThreadPool& pool,
                      QuantizedMatrix& out) {
  nvfp4::QuantizeArgs args;
  args.source = {w.values, DType::kF32, w.n, w.k, w.k, false};
  args.amax = &amax;
  args.importance = importance;
  args.recipe = recipe;
  args.codes = out.codes.data();
  args.scales = out.scales.data();
  pool.run([&](Team& team) {
    team.dynamic_for(w.n, kGrain,
                     [&](int64_t begin, int64_t end) { nvfp4::quantize(args, begin, end); });
  });
}

// Sixteen rows of one matrix, a lane each; lanes beyond the last row hold zeros.
class LaneRows {
 public:
  explicit LaneRows(int64_t k)
      : k_(k),
        w_(size_t(k * kLanes)),
        work_(size_t(k * kLanes)),
        levels_(size_t(k * kLanes)),
        scales_(size_t(k / kBlock * kLanes)),
        beam_levels_(size_t(k * kLanes)),
        beam_scales_(scales_.size()),
        parents_(scales_.size()) {}

  void run(const WeightView& w,
           int64_t row,
           const TensorScale& scale,
           const Curvature& curvature,
           const MatrixMethod& method,
           QuantizedMatrix& out) {
    const auto rows = int(std::min<int64_t>(kLanes, w.n - row));
    load_weights(w, row, rows, w_, {});
    load_scales(out, row, rows);
    if (method.kind == Kind::kGptq) {
      gptq(w, row, rows, scale, curvature, method);
    } else {
      load_levels(out, row, rows);
    }
    if (method.refine > 0) refine(scale, curvature, method);
    save(row, rows, out);
  }

 private:
  void load_weights(const WeightView& w,
                    int64_t row,
                    int rows,
                    std::vector<float>& to,
                    const std::vector<int32_t>& order) {
    std::fill(to.begin(), to.end(), 0.0f);
    for (int lane = 0; lane < rows; ++lane) {
      const float* from = w.values + (row + lane) * k_;
      for (int64_t i = 0; i < k_; ++i)
        to[size_t(i * kLanes + lane)] = from[order.empty() ? i : int64_t(order[size_t(i)])];
    }
  }

  void load_scales(const QuantizedMatrix& from, int64_t row, int rows) {
    std::fill(scales_.begin(), scales_.end(), uint8_t(0));
    const int64_t blocks = k_ / kBlock;
    for (int lane = 0; lane < rows; ++lane)
      for (int64_t block = 0; block < blocks; ++block)
        scales_[size_t(block * kLanes + lane)] = from.scales[size_t((row + lane) * blocks + block)];
  }

  void load_levels(const QuantizedMatrix& from, int64_t row, int rows) {
    std::fill(levels_.begin(), levels_.end(), 0.0f);
    for (int lane = 0; lane < rows; ++lane) {
      const uint8_t* codes = from.codes.data() + (row + lane) * nvfp4::code_bytes(k_);
      for (int64_t i = 0; i < k_; ++i)
        levels_[size_t(i * kLanes + lane)] = nvfp4::e2m1_decode(codes[i / 2] >> (i % 2 * 4) & 15);
    }
  }

  void gptq(const WeightView& w,
            int64_t row,
            int rows,
            const TensorScale& scale,
            const Curvature& curvature,
            const MatrixMethod& method) {
    GptqArgs args;
    args.k = k_;
    args.scale = scale;
    args.rule = method.recipe.rule;
    args.metric = method.recipe.metric;
    args.simulated = method.choice == ScaleChoice::kSimulated;
    args.factor = curvature.factor().data();
    args.importance = method.weighted ? curvature.diagonal().data() : nullptr;
    args.order = curvature.order().empty() ? nullptr : curvature.order().data();
    args.w = work_.data();
    args.levels = levels_.data();
    args.scales = scales_.data();
    if (method.beam > 1) return gptq_beam(rows, args, method.beam);
    load_weights(w, row, rows, work_, curvature.order());
    lane_kernels().gptq(args);
  }

  // lanes / beam rows at a time, each in `beam` lanes.
  void gptq_beam(int rows, const GptqArgs& gptq, int beam) {
    BeamArgs args{gptq, beam, parents_.data()};
    args.gptq.levels = beam_levels_.data();
    args.gptq.scales = beam_scales_.data();
    for (int begin = 0; begin < rows; begin += kLanes / beam) {
      for (int64_t i = 0; i < k_; ++i)
        for (int lane = 0; lane < kLanes; ++lane)
          work_[size_t(i * kLanes + lane)] = w_[size_t(i * kLanes + begin + lane / beam)];
      lane_kernels().gptq_beam(args);
      for (int lane = 0; lane < kLanes; lane += beam) {
        const int to = begin + lane / beam;
        for (size_t i = 0; i < beam_levels_.size(); i += kLanes)
          levels_[i + size_t(to)] = beam_levels_[i + size_t(lane)];
        for (size_t i = 0; i < beam_scales_.size(); i += kLanes)
          scales_[i + size_t(to)] = beam_scales_[i + size_t(lane)];
      }
    }
  }

  void refine(const TensorScale& scale, const Curvature& curvature, const MatrixMethod& method) {
    RefineArgs args;
    args.k = k_;
    args.scale = scale;
    args.sweeps = method.refine;
    args.gram = curvature.gram().data();
    args.w = w_.data();
    args.levels = levels_.data();
    args.scales = scales_.data();
    args.gradient = work_.data();
    lane_kernels().refine(args);
  }

  void save(int64_t row, int rows, QuantizedMatrix& out) const {
    const int64_t blocks = k_ / kBlock;
    for (int lane = 0; lane < rows; ++lane) {
      uint8_t* codes = out.codes.data() + (row + lane) * nvfp4::code_bytes(k_);
      for (int64_t i = 0; i < k_; i += 2) {
        const uint8_t low = nvfp4::e2m1_encode(levels_[size_t(i * kLanes + lane)]);
        const uint8_t high = nvfp4::e2m1_encode(levels_[size_t((i + 1) * kLanes + lane)]);
        codes[i / 2] = uint8_t(low | high << 4);
      }
      for (int64_t block = 0; block < blocks; ++block) {
        const uint8_t* mine = codes + block * (kBlock / 2);
        const bool zero = std::all_of(mine, mine + kBlock / 2, [](uint8_t c) { return c == 0; });
        out.scales[size_t((row + lane) * blocks + block)] =
            zero ? uint8_t(0) : scales_[size_t(block * kLanes + lane)];
      }
    }
  }

  int64_t k_;
  std::vector<float> w_, work_, levels_;  // [K, lanes]
  std::vector<uint8_t> scales_;           // [K / 16, lanes]
  std::vector<float> beam_levels_;        // of the versions of some rows
  std::vector<uint8_t> beam_scales_, parents_;
};

}  // namespace

QuantizedMatrix quantize_matrix(const WeightView& w,
                                float amax,
                                const Curvature* curvature,
                                const MatrixMethod& method,
                                ThreadPool& pool) {
  check_shape(w);
  check_curvature(w, curvature, method);
  const bool descends = method.kind == Kind::kGptq || method.refine > 0;
  if (descends) check_descent(w, amax, method.recipe);
  QuantizedMatrix out{w.n, w.k, {}, {}, nvfp4::tensor_scale(amax, method.recipe)};
  out.codes.resize(size_t(w.n * nvfp4::code_bytes(w.k)));
  out.scales.resize(size_t(w.n * w.k / kBlock));
  if (w.n == 0 || (descends && amax == 0)) return out;
  const bool starts_rounded = method.kind == Kind::kRtn || method.act_order;
  if (starts_rounded) {
    const bool weighted = method.weighted || method.act_order;
    round_to_nearest(w, amax, weighted ? curvature->diagonal().data() : nullptr, method.recipe,
                     pool, out);
  }
  if (!descends) return out;
  const TensorScale scale = tensor_scale_of(amax, method.recipe);
  std::vector<LaneRows> rows(size_t(pool.size()), LaneRows(w.k));
  pool.run([&](Team& team) {
    LaneRows& mine = rows[size_t(team.rank())];
    team.dynamic_for(w.n, kLanes, [&](int64_t row, int64_t) {
      mine.run(w, row, scale, *curvature, method, out);
    });
  });
  return out;
}

void dequantize(const QuantizedMatrix& matrix, float* out, ThreadPool& pool) {
  nvfp4::DequantizeArgs args;
  args.codes = matrix.codes.data();
  args.scales = matrix.scales.data();
  args.multiplier = &matrix.multiplier;
  args.rows = matrix.n;
  args.k = matrix.k;
  args.out = out;
  pool.run([&](Team& team) {
    team.dynamic_for(matrix.n, kGrain,
                     [&](int64_t begin, int64_t end) { nvfp4::dequantize(args, begin, end); });
  });
}

}  // namespace longspur::quant
