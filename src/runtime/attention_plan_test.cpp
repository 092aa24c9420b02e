#include "runtime/attention_plan.h"

#include <gtest/gtest.h>

#include "base/error.h"

namespace longspur::runtime {
namespace {

namespace xattn = kernels::xattn;

io::ModelConfig model() {
  io::ModelConfig config;
  config.layers = 3;
  config.heads = 4;
  config.kv_heads = 2;
  config.sliding_window = {0, 512, 0};
  return config;
}

XattentionPlan plan() {
  XattentionPlan plan;
  plan.estimator = xattn::Estimator{{{xattn::Term::kSampled, 16, 1.0, true}}};
  plan.thresholds = {0.1f, 0.2f, 0.3f, 1.0f, 0.5f, 0.5f, 0.5f, 0.5f, 0.9f, 0.8f, 0.7f, 0.6f};
  plan.dense_below = 256;
  return plan;
}

TEST(AttentionPlan, AGroupKeepsWhatItsMostDemandingHeadDoes) {
  const XattentionPolicy policy(plan(), model());
  EXPECT_EQ(policy.mask_heads(), 2);
  EXPECT_EQ(policy.thresholds(0, ForwardBatch::kPlanThreshold), (std::vector<float>{0.2f, 2.0f}));
  EXPECT_EQ(policy.thresholds(2, ForwardBatch::kPlanThreshold), (std::vector<float>{0.9f, 0.7f}));
  EXPECT_EQ(policy.thresholds(0, 0.4f), (std::vector<float>{0.4f, 0.4f}));
  XattentionPlan own = plan();
  own.mask_per_head = true;
  EXPECT_EQ(XattentionPolicy(own, model()).thresholds(0, ForwardBatch::kPlanThreshold),
            (std::vector<float>{0.1f, 0.2f, 0.3f, 2.0f}));
}

TEST(AttentionPlan, LayersWithAWindowAndTheFirstOnesStayDense) {
  XattentionPlan p = plan();
  p.first_layers_dense = 1;
  const XattentionPolicy all(plan(), model()), later(p, model());
  EXPECT_TRUE(all.is_sparse_layer(0));
  EXPECT_FALSE(all.is_sparse_layer(1));
  EXPECT_FALSE(later.is_sparse_layer(0));
  EXPECT_TRUE(later.is_sparse_layer(2));
}

TEST(AttentionPlan, BlocksOfAPromptThatMayBeSparse) {
  XattentionPlan p = plan();
  const auto blocks = [&](int64_t prompt) {
    const auto found = XattentionPolicy(p, model()).sparse_blocks(prompt);
    return std::pair(found.first, found.last);
  };
  using Pair = std::pair<int64_t, int64_t>;
  EXPECT_EQ(blocks(1000), Pair(2, 8));
  EXPECT_EQ(blocks(200), Pair(2, 2));        // none
  EXPECT_EQ(blocks(1024 + 15), Pair(2, 8));  // a piece of few rows is dense, however cut
  EXPECT_EQ(blocks(1024 + 16), Pair(2, 9));
  p.last_tokens_dense = 1;
  EXPECT_EQ(blocks(1000), Pair(2, 7));
  EXPECT_EQ(blocks(1024), Pair(2, 7));
  p.last_tokens_dense = 5000;
  EXPECT_EQ(blocks(1000), Pair(0, 0));
}

TEST(AttentionPlan, TheCostModelIsForLongPrompts) {
  XattentionPlan p = plan();
  p.dense_below.reset();
  const auto first = [&] { return XattentionPolicy(p, model()).sparse_blocks(1 << 20).first; };
  const int64_t cheap = first();
  EXPECT_GT(cheap, 0);
  EXPECT_LE(cheap, 64);
  p.estimator->terms[0].size = 2;  // costs more than it can save
  EXPECT_EQ(first(), (1 << 20) / 128);
  EXPECT_GT(expected_density(256, p.select), expected_density(4096, p.select));
  EXPECT_EQ(expected_density(100, p.select), 1.0);
}

TEST(AttentionPlan, OnlyRowsOfPromptsAreSparse) {
  const XattentionPolicy policy(plan(), model());
  const std::vector<int32_t> tokens(4), rows = {0, 1, 2, 3, 4}, keys = {1000, 1001, 1000, 200},
                                        prompts = {1000, 1000, 1000, 200};
  const std::vector<float> thresholds = {-1.0f, -1.0f, 1.0f, -1.0f};
  ForwardBatch batch;
  batch.tokens = tokens;
  batch.cu_seqlens = rows;
  batch.kv_lens = keys;
  EXPECT_FALSE(policy.is_sparse(batch, 0));  // nothing is said about prompts
  batch.prompt_lens = prompts;
  batch.thresholds = thresholds;
  EXPECT_TRUE(policy.is_sparse(batch, 0));
  EXPECT_FALSE(policy.is_sparse(batch, 1));  // an answer's row
  EXPECT_FALSE(policy.is_sparse(batch, 2));  // dense by request
  EXPECT_FALSE(policy.is_sparse(batch, 3));  // short
  EXPECT_EQ(prompt_share(batch), 0.75);
}

TEST(AttentionPlan, MeansOfKeysAreKeptForTermsThatReadThem) {
  XattentionPlan p = plan();
  EXPECT_FALSE(XattentionPolicy(p, model()).needs_key_means(1 << 20));
  p.estimator->terms.push_back({xattn::Term::kMean, 128, 1.0, true});
  EXPECT_TRUE(XattentionPolicy(p, model()).needs_key_means(128));
}

TEST(AttentionPlan, ThresholdsOfAnotherShapeAreRefused) {
  XattentionPlan p = plan();
  p.thresholds.pop_back();
  EXPECT_THROW(XattentionPolicy(p, model()), Error);
}

}  // namespace
}  // namespace longspur::runtime
