// Conversion of one layer: folding changes nothing that the layer computes, matrices of a site
// share a scale, kept ones are exact; and the measure of divergence against sums in double.
#include "quant/convert_layer.h"

#include <gtest/gtest.h>

#include <cmath>

#include "base/rng.h"
#include "quant/channel_folding.h"
#include "quant/divergence.h"
#include "quant/float_decoder.h"

namespace longspur::quant {
namespace {

constexpr int64_t kHidden = 64, kInner = 96, kHeads = 4, kGroups = 2, kDim = 16, kTokens = 37;

io::ModelConfig config() {
  io::ModelConfig config;
  config.vocab = 10;
  config.hidden = kHidden;
  config.intermediate = kInner;
  config.layers = 1;
  config.heads = kHeads;
  config.kv_heads = kGroups;
  config.head_dim = config.rotary_dim = kDim;
  config.max_position = 512;
  config.sliding_window = {0};
  return config;
}

Matrix random_matrix(int64_t rows, int64_t width, uint64_t seed) {
  Matrix x(rows, width);
  Noise noise(seed);
  for (float& value : x.values) value = noise.next();
  return x;
}

std::vector<float> random_vector(int64_t n, uint64_t seed) {
  return random_matrix(1, n, seed).values;
}

LayerWeights random_layer() {
  LayerWeights w;
  const int64_t rows[kRoles] = {kHeads * kDim, kGroups * kDim, kGroups * kDim, kHidden,
                                kInner,        kInner,         kHidden};
  const int64_t columns[kRoles] = {kHidden, kHidden, kHidden, kHeads * kDim,
                                   kHidden, kHidden, kInner};
  for (size_t role = 0; role < kRoles; ++role)
    w.linear[role] = random_matrix(rows[role], columns[role], role + 1);
  w.bias[size_t(Role::kV)] = random_vector(kGroups * kDim, 20);
  w.bias[size_t(Role::kUp)] = random_vector(kInner, 21);
  w.attn_norm = random_vector(kHidden, 22);
  w.ffn_norm = random_vector(kHidden, 23);
  return w;
}

class LayerTest : public ::testing::Test {
 protected:
  LayerTest() : config_(config()), pool_(2), decoder_(config_, tensors_, pool_) {}

  FloatDecoder::Batch batch() const {
    FloatDecoder::Batch batch;
    batch.cu_seqlens = {0, 20, int32_t(kTokens)};
    batch.hidden = random_matrix(kTokens, kHidden, 40);
    return batch;
  }
  Matrix output(const LayerWeights& weights) {
    FloatDecoder::Batch moved = batch();
    decoder_.run_layer(0, pack_layer(weights, pool_), moved, {});
    return moved.hidden;
  }
  LayerStats stats(const LayerWeights& weights) {
    FloatDecoder::Batch moved = batch();
    CalibrationObserver observer(pool_);
    decoder_.run_layer(0, pack_layer(weights, pool_), moved, {.observer = &observer});
    return observer.take();
  }

  io::ModelConfig config_;
  models::DecoderTensors tensors_;
  ThreadPool pool_;
  FloatDecoder decoder_;
};

void expect_close(const Matrix& a, const Matrix& b, double tolerance) {
  double error = 0, size = 0;
  for (size_t i = 0; i < a.values.size(); ++i) {
    error += std::pow(double(a.values[i]) - double(b.values[i]), 2);
    size += std::pow(double(b.values[i]), 2);
  }
  EXPECT_LT(std::sqrt(error / size), tolerance);
}

TEST_F(LayerTest, FoldedScalesChangeNothing) {
  const LayerWeights original = random_layer();
  const Matrix expected = output(original);
  const LayerStats before = stats(original);
  for (const Site site : {Site::kQkv, Site::kOutput, Site::kGateUp, Site::kDown}) {
    const int64_t k = original.linear[size_t(roles_of(site).begin)].width;
    std::vector<float> scale = random_vector(k, 50 + uint64_t(site));
    for (float& value : scale) value = std::exp(value);
    if (site == Site::kOutput) {  // heads that share a value head share scales
      for (int64_t c = 0; c < k; ++c)
        scale[size_t(c)] = scale[size_t(c / kDim / 2 * 2 * kDim + c % kDim)];
    }
    LayerWeights folded = original;
    LayerStats folded_stats = before;
    fold_site(config_, site, scale, folded, folded_stats[size_t(site)]);
    expect_close(output(folded), expected, 1e-5);
    EXPECT_NE(folded.linear[size_t(roles_of(site).begin)].values,
              original.linear[size_t(roles_of(site).begin)].values);
    const InputStats seen = stats(folded)[size_t(site)];
    for (size_t i = 0; i < seen.gram.size(); ++i) {
      EXPECT_NEAR(folded_stats[size_t(site)].gram[i], seen.gram[i],
                  1e-3 * std::abs(seen.gram[i]) + 1e-3);
    }
  }
}

TEST_F(LayerTest, SitesShareAScaleAndKeptOnesAreExact) {
  const LayerWeights original = random_layer();
  KeptSites kept = {};
  kept[size_t(Site::kDown)] = true;
  const ConvertedLayer converted = convert_layer(config_, original, nullptr, {}, kept, pool_);
  const auto scale = [&](Role role) { return converted.linear[size_t(role)].nvfp4.multiplier; };
  EXPECT_EQ(scale(Role::kQ), scale(Role::kK));
  EXPECT_EQ(scale(Role::kQ), scale(Role::kV));
  EXPECT_EQ(scale(Role::kGate), scale(Role::kUp));
  EXPECT_GT(scale(Role::kOutput), 0.0f);
  const LayerWeights back = read_back(converted, pool_);
  EXPECT_EQ(back.at(Role::kDown).values, original.at(Role::kDown).values);
  EXPECT_NE(back.at(Role::kGate).values, original.at(Role::kGate).values);
  expect_close(back.at(Role::kGate), original.at(Role::kGate), 0.12);
}

TEST_F(LayerTest, ReportedErrorsAreThoseOfTheMatrices) {
  const LayerWeights original = random_layer();
  const LayerStats seen = stats(original);
  const ConvertedLayer converted = convert_layer(config_, original, &seen, {}, {}, pool_);
  const LayerWeights back = read_back(converted, pool_);
  const Matrix &w = original.at(Role::kUp), &q = back.at(Role::kUp);
  const InputStats& input = seen[size_t(Site::kGateUp)];
  double error = 0, size = 0, output_error = 0, output_size = 0;
  for (int64_t n = 0; n < w.rows; ++n) {
    for (int64_t i = 0; i < w.width; ++i) {
      const double e = double(q.row(n)[i]) - double(w.row(n)[i]);
      error += e * e;
      size += double(w.row(n)[i]) * double(w.row(n)[i]);
      for (int64_t j = 0; j < w.width; ++j) {
        const double h = double(input.gram[size_t(i * w.width + j)]);
        output_error += e * h * (double(q.row(n)[j]) - double(w.row(n)[j]));
        output_size += double(w.row(n)[i]) * h * double(w.row(n)[j]);
      }
    }
  }
  const MatrixReport& report = converted.linear[size_t(Role::kUp)].report;
  EXPECT_NEAR(report.weight_error, error / size, 1e-5 * error / size);
  EXPECT_NEAR(report.output_error, output_error / output_size, 1e-3 * output_error / output_size);
  EXPECT_FLOAT_EQ(converted.linear[size_t(Role::kUp)].input_multiplier, input.largest() / 2688);
}

TEST(RoundActivations, EachRowIsQuantisedWithItsOwnScale) {
  ThreadPool pool(2);
  const Matrix x = random_matrix(19, 48, 70);
  kernels::nvfp4::Recipe recipe;
  recipe.rule = kernels::nvfp4::Rule::kSweep;
  Matrix rounded = x;
  round_activations(rounded, recipe, pool);
  for (int64_t row = 0; row < x.rows; ++row) {
    float amax = 0.0f;
    for (int64_t i = 0; i < x.width; ++i) amax = std::max(amax, std::abs(x.row(row)[i]));
    uint8_t codes[24], scales[3];
    kernels::nvfp4::QuantizeArgs args;
    args.source = {x.row(row), DType::kF32, 1, x.width, x.width, false};
    args.amax = &amax;
    args.recipe = recipe;
    args.codes = codes;
    args.scales = scales;
    kernels::nvfp4::quantize_ref(args, 0, 1);
    const float multiplier = kernels::nvfp4::tensor_scale(amax, recipe);
    float expected[48];
    kernels::nvfp4::dequantize_ref(
        {codes, scales, &multiplier, false, 1, x.width, DType::kF32, expected}, 0, 1);
    for (int64_t i = 0; i < x.width; ++i) EXPECT_EQ(rounded.row(row)[i], expected[i]);
  }
}

TEST(Divergence, AgreesWithSumsInDouble) {
  ThreadPool pool(2);
  Matrix p = random_matrix(5, 1037, 60), q = random_matrix(5, 1037, 61);
  for (float& value : p.values) value *= 30.0f;
  for (float& value : q.values) value *= 30.0f;
  std::copy(p.row(3), p.row(4), q.row(3));
  const std::vector<int32_t> next = {0, 1036, 500, 7, -1};
  double kl = 0, nll = 0;
  for (int64_t row = 0; row < 5; ++row) {
    double sum_p = 0, sum_q = 0;
    for (int64_t i = 0; i < p.width; ++i) {
      sum_p += std::exp(double(p.row(row)[i]));
      sum_q += std::exp(double(q.row(row)[i]));
    }
    for (int64_t i = 0; i < p.width; ++i) {
      const double lp = double(p.row(row)[i]) - std::log(sum_p);
      kl += std::exp(lp) * (lp - double(q.row(row)[i]) + std::log(sum_q));
    }
    if (next[size_t(row)] >= 0) nll += std::log(sum_q) - double(q.row(row)[next[size_t(row)]]);
  }
  const Divergence found = compare_logits(p, q, next, pool);
  EXPECT_EQ(found.rows, 5);
  EXPECT_EQ(found.scored, 4);
  EXPECT_GE(found.agreeing, 1);
  EXPECT_NEAR(found.kl, kl, 1e-5 * kl);
  EXPECT_NEAR(found.nll, nll, 1e-6 * nll);
  EXPECT_EQ(compare_logits(p, p, next, pool).kl, 0.0);
}

}  // namespace
}  // namespace longspur::quant
