// A layer quantised product by product, on made-up inputs.
#include "quant/sequential.h"

#include <gtest/gtest.h>

#include "base/rng.h"

namespace longspur::quant {
namespace {

constexpr int64_t kHidden = 32, kWide = 48, kTokens = 160;

Matrix random_matrix(int64_t rows, int64_t width, uint64_t seed) {
  Matrix x(rows, width);
  Noise noise(seed);
  for (float& value : x.values) value = noise.next();
  return x;
}

LayerWeights make_weights() {
  LayerWeights weights;
  for (int role = 0; role < kRoles; ++role) {
    const bool up = Role(role) == Role::kGate || Role(role) == Role::kUp;
    const int64_t width = Role(role) == Role::kDown ? kWide : kHidden;
    weights.linear[size_t(role)] = random_matrix(up ? kWide : kHidden, width, uint64_t(role) + 1);
  }
  return weights;
}

Matrix inputs_of(Site site, float drifted) {
  const int64_t width = site == Site::kDown ? kWide : kHidden;
  Matrix x = random_matrix(kTokens, width, uint64_t(site) + 20);
  const Matrix other = random_matrix(kTokens, width, uint64_t(site) + 30);
  for (size_t i = 0; i < x.values.size(); ++i)
    x.values[i] += drifted * (other.values[i] - x.values[i]);
  return x;
}

ConvertedLayer convert(const LayerWeights& weights,
                       const ConvertOptions& options,
                       const KeptSites& kept,
                       float drifted) {
  ThreadPool pool(2);
  InputRecorder original;
  for (int site = 0; site < kSites; ++site) original.reads(Site(site), inputs_of(Site(site), 0));
  PackedLayer packed = pack_layer(weights, pool);
  SequentialLayer layer(weights, original, Matrix(kTokens, kHidden), options, kept, packed, pool);
  for (int site = 0; site < kSites; ++site) layer.reads(Site(site), inputs_of(Site(site), drifted));
  return layer.take();
}

// |x Q^T - x_full W^T|^2 of one matrix.
double output_error(const Matrix& q, const Matrix& w, Site site, float drifted) {
  const Matrix x = inputs_of(site, drifted), full = inputs_of(site, 0);
  double sum = 0;
  for (int64_t t = 0; t < kTokens; ++t) {
    for (int64_t row = 0; row < w.rows; ++row) {
      double difference = 0;
      for (int64_t k = 0; k < w.width; ++k)
        difference += double(x.row(t)[k]) * double(q.row(row)[k]) -
                      double(full.row(t)[k]) * double(w.row(row)[k]);
      sum += difference * difference;
    }
  }
  return sum;
}

ConvertOptions gptq_options() {
  ConvertOptions options;
  options.matrix.kind = Kind::kGptq;
  options.matrix.recipe.rule = kernels::nvfp4::Rule::kSweep;
  return options;
}

TEST(SequentialLayer, WithoutRetargetingIsTheMethodOnTheNewInputs) {
  const LayerWeights weights = make_weights();
  const ConvertOptions options = gptq_options();
  const ConvertedLayer found = convert(weights, options, {}, 0.3f);
  ThreadPool pool(1);
  LayerStats stats;
  for (int site = 0; site < kSites; ++site)
    add_inputs(inputs_of(Site(site), 0.3f), stats[size_t(site)], pool);
  const ConvertedLayer expected = convert_layer({}, weights, &stats, options, {}, pool);
  for (size_t role = 0; role < kRoles; ++role) {
    EXPECT_EQ(found.linear[role].nvfp4.codes, expected.linear[role].nvfp4.codes);
    EXPECT_EQ(found.linear[role].nvfp4.multiplier, expected.linear[role].nvfp4.multiplier);
  }
}

TEST(SequentialLayer, RetargetingBringsOutputsNearerToTheOriginal) {
  const LayerWeights weights = make_weights();
  ConvertOptions options = gptq_options();
  const ConvertedLayer plain = convert(weights, options, {}, 0.3f);
  options.retarget = 1.0;
  const ConvertedLayer moved = convert(weights, options, {}, 0.3f);
  ThreadPool pool(1);
  for (const Role role : {Role::kQ, Role::kV, Role::kGate, Role::kUp}) {
    const Matrix& w = weights.at(role);
    const Site site = site_of(role);
    EXPECT_LT(output_error(values_of(moved.linear[size_t(role)], pool), w, site, 0.3f),
              0.95 * output_error(values_of(plain.linear[size_t(role)], pool), w, site, 0.3f));
  }
}

TEST(SequentialLayer, KeptSitesStay) {
  const LayerWeights weights = make_weights();
  ConvertOptions options = gptq_options();
  options.retarget = 1.0;
  const ConvertedLayer found = convert(weights, options, {true, false, true, false}, 0.3f);
  for (const Role role : {Role::kQ, Role::kGate, Role::kUp}) {
    EXPECT_TRUE(found.linear[size_t(role)].kept);
    EXPECT_EQ(found.linear[size_t(role)].values.values, weights.at(role).values);
  }
  EXPECT_FALSE(found.linear[size_t(Role::kOutput)].kept);
  EXPECT_FALSE(found.linear[size_t(Role::kDown)].kept);
}

}  // namespace
}  // namespace longspur::quant
