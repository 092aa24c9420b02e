// Channel scales: what they must leave alone, and that they pay where they should.
#include "quant/channel_scales.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "base/error.h"
#include "base/rng.h"

namespace longspur::quant {
namespace {

namespace nvfp4 = kernels::nvfp4;
using ::testing::HasSubstr;
using ::testing::ThrowsMessage;
using Kind = ChannelScaleSearch::Kind;

struct Product {
  int64_t k = 64, rows = 96;
  std::vector<float> first, second, sample, mean, absmax;

  std::vector<WeightView> linears() const {
    return {{first.data(), int64_t(first.size()) / k, k},
            {second.data(), int64_t(second.size()) / k, k}};
  }
  ChannelInputs inputs() const { return {k, rows, sample.data(), mean.data(), absmax.data(), {}}; }
};

// Every 16th channel is `loud` times the others.
Product make_product(float loud, uint64_t seed) {
  Product p;
  Noise noise(seed);
  p.first.resize(size_t(37 * p.k));
  p.second.resize(size_t(16 * p.k));
  for (float& x : p.first) x = noise.next();
  for (float& x : p.second) x = noise.next();
  p.sample.resize(size_t(p.rows * p.k));
  p.mean.resize(size_t(p.k));
  p.absmax.resize(size_t(p.k));
  for (size_t i = 0; i < p.sample.size(); ++i) {
    const size_t channel = i % size_t(p.k);
    const float x = p.sample[i] = noise.next() * (channel % 16 == 7 ? loud : 1.0f);
    p.mean[channel] += std::fabs(x) / float(p.rows);
    p.absmax[channel] = std::max(p.absmax[channel], std::fabs(x));
  }
  return p;
}

ChannelScales search(const Product& p, Kind kind, const nvfp4::Recipe* activations, int threads) {
  ThreadPool pool(threads);
  ChannelScaleSearch how;
  how.kind = kind;
  how.activations = activations;
  return search_channel_scales(p.linears(), p.inputs(), how, pool);
}

TEST(ChannelScales, NeverWorseThanNone) {
  const nvfp4::Recipe activations;
  for (const float loud : {1.0f, 30.0f}) {
    const Product p = make_product(loud, 3);
    for (const Kind kind : {Kind::kAwq, Kind::kSmoothQuant}) {
      for (const nvfp4::Recipe* recipe :
           {static_cast<const nvfp4::Recipe*>(nullptr), &activations}) {
        const ChannelScales found = search(p, kind, recipe, 1);
        EXPECT_LE(found.error, found.plain_error);
        EXPECT_GT(found.plain_error, 1e-3);
        for (const float s : found.scale) EXPECT_TRUE(s > 0 && std::isfinite(s));
      }
    }
  }
}

TEST(ChannelScales, AwqProtectsTheLoudChannels) {
  const Product p = make_product(30.0f, 4);
  const ChannelScales found = search(p, Kind::kAwq, nullptr, 1);
  EXPECT_LT(found.error, 0.7 * found.plain_error);
  EXPECT_GT(found.alpha, 0.0);
  EXPECT_GT(found.scale[7], found.scale[6]);
}

TEST(ChannelScales, SmoothQuantEvensOutTheInputs) {
  const Product p = make_product(30.0f, 5);
  const nvfp4::Recipe activations;
  const ChannelScales found = search(p, Kind::kSmoothQuant, &activations, 1);
  EXPECT_LT(found.error, 0.9 * found.plain_error);
  EXPECT_GT(found.scale[7], found.scale[6]);
}

TEST(ChannelScales, TiedChannelsGetOneScale) {
  const Product p = make_product(30.0f, 6);
  std::vector<int32_t> tied;
  for (int32_t i = 0; i < 64; ++i) tied.push_back(i % 32);
  ChannelInputs inputs = p.inputs();
  inputs.tied = tied;
  ThreadPool pool(1);
  const ChannelScales found = search_channel_scales(p.linears(), inputs, {}, pool);
  EXPECT_GT(found.alpha, 0.0);
  for (size_t i = 0; i < 32; ++i) EXPECT_EQ(found.scale[i], found.scale[i + 32]);
}

TEST(ChannelScales, DoNotDependOnThreads) {
  const Product p = make_product(10.0f, 7);
  const ChannelScales one = search(p, Kind::kAwq, nullptr, 1);
  const ChannelScales two = search(p, Kind::kAwq, nullptr, 2);
  EXPECT_EQ(one.scale, two.scale);
  EXPECT_EQ(one.error, two.error);
}

TEST(ChannelScales, DeadChannelsAreHarmless) {
  Product p = make_product(10.0f, 8);
  p.mean[3] = p.absmax[3] = 0;
  for (int64_t row = 0; row < p.rows; ++row) p.sample[size_t(row * p.k + 3)] = 0;
  for (const Kind kind : {Kind::kAwq, Kind::kSmoothQuant})
    for (const float s : search(p, kind, nullptr, 1).scale) EXPECT_TRUE(s > 0 && std::isfinite(s));
}

TEST(ChannelScales, RefuseShapesThatDoNotAgree) {
  const Product p = make_product(1.0f, 9);
  ThreadPool pool(1);
  ChannelInputs inputs = p.inputs();
  inputs.k = 48;
  EXPECT_THAT([&] { search_channel_scales(p.linears(), inputs, {}, pool); },
              ThrowsMessage<Error>(HasSubstr("64 columns, expected the inputs' 48")));
  inputs = p.inputs();
  inputs.rows = 0;
  EXPECT_THAT([&] { search_channel_scales(p.linears(), inputs, {}, pool); },
              ThrowsMessage<Error>(HasSubstr("no sample")));
}

}  // namespace
}  // namespace longspur::quant
