// Scores of key blocks: laws of the reference, and values that can be worked out by hand.
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "base/rng.h"
#include "kernels/xattn/api.h"

namespace longspur::kernels::xattn {
namespace {

constexpr int64_t kDim = 4;

// One sequence of one head in fp32.
struct Problem {
  Problem(int32_t n, int32_t m, std::string_view estimator, int64_t block, bool causal = true)
      : cu_q{0, n}, cu_k{0, m}, q(size_t(n * kDim)), k(size_t(m * kDim)) {
    for (size_t i = 0; i < q.size(); ++i) q[i] = 4.0f * uniform01(philox4x32(1, 0, i)[0]) - 2.0f;
    for (size_t i = 0; i < k.size(); ++i) k[i] = 4.0f * uniform01(philox4x32(2, 0, i)[0]) - 2.0f;
    args.shape.cu_seqlens_q = cu_q;
    args.shape.cu_seqlens_k = cu_k;
    args.shape.batch = args.shape.heads = args.shape.kv_heads = args.score_heads = 1;
    args.shape.head_dim = kDim;
    args.shape.causal = causal;
    args.shape.scale = 0.5;
    args.estimator = parse_estimator(estimator, 16, block, m);
    args.block_size = block;
    args.query_blocks = ceil_div(int64_t(n), kQueryBlock);
    args.key_blocks = ceil_div(int64_t(m), block);
  }
  std::vector<float> run() {
    args.q = {q.data(), kDim, kDim};
    args.k = {k.data(), kDim, kDim};
    std::vector<float> scores(size_t(args.query_blocks * args.key_blocks), NAN);
    args.scores = scores.data();
    block_scores_ref(args);
    return scores;
  }
  int32_t cu_q[2], cu_k[2];
  std::vector<float> q, k;
  ScoreArgs args;
};

const char* const kEstimators[] = {
    "antidiagonal:4", "antidiagonal:64", "diagonal:16",
    "pooled:16",      "pooled:1024",     "pooled_plain:128",
    "sampled:1",      "sampled:128",     "outlier",
    "mean",           "block_mean",      "3*pooled:64+sampled:32+0.5*antidiagonal:8+mean+outlier"};

TEST(ScoresRef, RowsAddUpToOneOverWhatIsVisible) {
  for (const char* estimator : kEstimators) {
    for (const auto& [n, m] : std::vector<std::pair<int32_t, int32_t>>{
             {1, 1}, {130, 130}, {300, 300}, {77, 500}, {300, 41}, {257, 1025}}) {
      for (const int64_t block : {64, 128}) {
        for (const bool causal : {true, false}) {
          Problem p(n, m, estimator, block, causal);
          const std::vector<float> scores = p.run();
          for (int64_t i = 0; i < p.args.query_blocks; ++i) {
            const int64_t end = visible_blocks(i, n, m, block, causal).end;
            double sum = 0.0;
            for (int64_t j = 0; j < p.args.key_blocks; ++j) {
              const float score = scores[size_t(i * p.args.key_blocks + j)];
              ASSERT_GE(score, 0.0f);
              if (j >= end) {
                ASSERT_EQ(score, 0.0f);
              }
              sum += double(score);
            }
            // with more queries than keys, a term whose rows are all dead is 0
            if (m >= n || !causal) {
              ASSERT_NEAR(sum, 1.0, 1e-5) << estimator << " " << n << " " << m << " block " << i;
            } else if (end == 0) {
              ASSERT_EQ(sum, 0.0);
            }
          }
        }
      }
    }
  }
}

TEST(ScoresRef, SampledOfOneIsTheExactShare) {
  constexpr int32_t kN = 200, kM = 333;
  Problem p(kN, kM, "sampled:1", 64);
  const std::vector<float> scores = p.run();
  for (int64_t i = 0; i < p.args.query_blocks; ++i) {
    std::vector<double> expected(size_t(p.args.key_blocks), 0.0);
    const int64_t begin = i * kQueryBlock, end = std::min<int64_t>(kN, begin + kQueryBlock);
    for (int64_t r = begin; r < end; ++r) {
      std::vector<double> weights;
      double sum = 0.0;
      for (int64_t j = 0; j <= kM - kN + r; ++j) {
        double s = 0.0;
        for (int64_t d = 0; d < kDim; ++d)
          s += double(p.q[size_t(r * kDim + d)]) * double(p.k[size_t(j * kDim + d)]);
        weights.push_back(std::exp(0.5 * s));
        sum += weights.back();
      }
      for (size_t j = 0; j < weights.size(); ++j)
        expected[j / 64] += weights[j] / sum / double(end - begin);
    }
    for (int64_t j = 0; j < p.args.key_blocks; ++j)
      EXPECT_NEAR(scores[size_t(i * p.args.key_blocks + j)], expected[size_t(j)], 1e-6);
  }
}

// A query and a key that meet only if their offsets in a group of 4 add up to 3, and only then.
TEST(ScoresRef, AntidiagonalsMeetWhereOffsetsAddUp) {
  for (const bool anti : {true, false}) {
    for (int64_t offset = 0; offset < 4; ++offset) {
      Problem p(256, 256, anti ? "antidiagonal:4" : "diagonal:4", 128);
      std::fill(p.q.begin(), p.q.end(), 0.0f);
      std::fill(p.k.begin(), p.k.end(), 0.0f);
      p.q[size_t((252 + 1) * kDim)] = 10.0f;     // offset 1 of the last group
      p.k[size_t((8 + offset) * kDim)] = 10.0f;  // group 2
      const std::vector<float> scores = p.run();
      // the last group of 64 groups: logit 100 * .5 / 4 at group 2, 0 elsewhere
      const double e = std::exp(offset == (anti ? 2 : 1) ? 12.5 : 0.0);
      double first = 0.0;
      for (int64_t r = 32; r < 63; ++r) first += 32.0 / double(r + 1);
      first = (first + (31.0 + e) / (63.0 + e)) / 32.0;
      EXPECT_NEAR(scores[2], first, 1e-6) << anti << " " << offset;
      EXPECT_NEAR(scores[3], 1.0 - first, 1e-6);
    }
  }
}

TEST(ScoresRef, NormBiasRaisesLongKeys) {
  Problem plain(128, 256, "pooled_plain:128", 128), biased(128, 256, "pooled:128", 128);
  for (Problem* p : {&plain, &biased}) {
    for (size_t i = 0; i < p->q.size(); ++i) p->q[i] = i / kDim % 2 == 0 ? 1.0f : -1.0f;  // mean 0
    std::fill(p->k.begin(), p->k.end(), 0.0f);
    p->k[size_t(100 * kDim)] = 8.0f;
  }
  EXPECT_NEAR(plain.run()[0], 0.5f, 1e-6f);
  // variance 1 in each channel: the logit is 1/4 * 64 * .5^2
  EXPECT_NEAR(biased.run()[0], (127.0 + std::exp(4.0)) / (255.0 + std::exp(4.0)), 1e-6);
}

TEST(ScoresRef, KeysBehindTheRowsChangeNothing) {
  for (const char* estimator : kEstimators) {
    // `mean` of a block is over its existing keys, so the cut is at a block
    Problem longer(300, 512, estimator, 64), shorter(172, 384, estimator, 64);
    std::copy_n(longer.k.begin(), shorter.k.size(), shorter.k.begin());
    std::copy_n(longer.q.begin(), shorter.q.size(), shorter.q.begin());
    const std::vector<float> a = longer.run(), b = shorter.run();
    if (std::string_view(estimator) == "pooled:1024") continue;  // its group reaches further
    for (int64_t j = 0; j < shorter.args.key_blocks; ++j)
      EXPECT_NEAR(a[size_t(j)], b[size_t(j)], 1e-6f) << estimator;
  }
}

TEST(ScoresRef, HeadsOfAGroupAreAveraged) {
  Problem p(150, 200, "sampled:16+mean", 64);
  p.args.shape.heads = 2;
  std::vector<float> q = p.q;
  for (size_t i = 0; i < p.q.size(); ++i) q.push_back(4.0f * uniform01(philox4x32(9, 0, i)[0]));
  const auto run = [&](int64_t score_heads) {
    p.args.score_heads = score_heads;
    p.args.q = {q.data(), 2 * kDim, kDim};
    p.args.k = {p.k.data(), kDim, kDim};
    std::vector<float> scores(size_t(score_heads * 2 * p.args.key_blocks), NAN);
    p.args.scores = scores.data();
    block_scores_ref(p.args);
    return scores;
  };
  const std::vector<float> each = run(2), mean = run(1);
  for (size_t j = 0; j < mean.size(); ++j)
    EXPECT_NEAR(mean[j], (each[j] + each[j + mean.size()]) / 2, 1e-7f);
}

}  // namespace
}  // namespace longspur::kernels::xattn
