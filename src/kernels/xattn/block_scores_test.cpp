// Scores of every instruction set against the loops in double, and laws. Tolerances are argued in
// docs/numerics.md, section xattn.
#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "base/aligned_buffer.h"
#include "base/thread_pool.h"
#include "kernels/attention/varlen_cases.h"
#include "kernels/xattn/api.h"

namespace longspur::kernels::xattn {
namespace {

using attention::Case;
using attention::for_each_isa;
using attention::Problem;

const std::vector<const char*> kEstimators = {
    "antidiagonal:4",
    "antidiagonal:16",
    "diagonal:64",
    "antidiagonal:16+diagonal:16+antidiagonal:8",
    "pooled:128",
    "pooled_plain:8",
    "pooled:512",
    "sampled:16",
    "sampled:1",
    "outlier",
    "mean",
    "block_mean",
    "0.5*pooled:64+sampled:128+0.25*mean+antidiagonal:32+outlier+block_mean"};

ScoreArgs make_args(const Problem& p, const char* estimator, int64_t block, int64_t score_heads) {
  ScoreArgs args;
  args.shape = p.shape;
  args.q = p.q.rows();
  args.k = p.k.rows();
  args.estimator = parse_estimator(estimator, 16, block, 8192);
  args.block_size = block;
  args.score_heads = score_heads;
  int64_t most_q = 0, most_k = 0;
  for (int64_t b = 0; b < p.shape.batch; ++b) {
    most_q = std::max<int64_t>(most_q, p.cu_q[size_t(b) + 1] - p.cu_q[size_t(b)]);
    most_k = std::max<int64_t>(most_k, p.cu_k[size_t(b) + 1] - p.cu_k[size_t(b)]);
  }
  args.query_blocks = ceil_div(most_q, kQueryBlock);
  args.key_blocks = ceil_div(most_k, block);
  return args;
}

std::vector<float> empty_scores(const ScoreArgs& args) {
  return std::vector<float>(
      size_t(args.shape.batch * args.score_heads * args.query_blocks * args.key_blocks), NAN);
}

std::vector<float> reference(ScoreArgs args) {
  std::vector<float> scores = empty_scores(args);
  args.scores = scores.data();
  block_scores_ref(args);
  return scores;
}

std::vector<float> kernels(ScoreArgs args, int threads = 1) {
  std::vector<float> scores = empty_scores(args);
  args.scores = scores.data();
  const BlockScores block_scores(args);
  AlignedBuffer workspace(size_t(block_scores.workspace_bytes()));
  std::fill_n(workspace.data(), workspace.size(), std::byte{0xff});  // NaN
  ThreadPool pool(threads);
  pool.run([&](Team& team) {
    AlignedBuffer scratch(size_t(block_scores.scratch_bytes()));
    std::fill_n(scratch.data(), scratch.size(), std::byte{0xff});
    for (int phase = 0; phase < BlockScores::kPhases; ++phase) {
      team.dynamic_for(block_scores.items(phase), 1, [&](int64_t item, int64_t) {
        block_scores.run(phase, item, scratch.data(), workspace.data());
      });
    }
  });
  return scores;
}

double largest_difference(const std::vector<float>& a, const std::vector<float>& b) {
  double most = 0.0;
  for (size_t i = 0; i < a.size(); ++i) {
    const double difference = std::fabs(double(a[i]) - double(b[i]));
    most = difference <= most ? most : difference;  // a NaN stays
  }
  return most;
}

void expect_close(const Problem& p, const char* estimator, int64_t block, int64_t score_heads) {
  const ScoreArgs args = make_args(p, estimator, block, score_heads);
  const std::vector<float> expected = reference(args);
  const bool bf16 = p.shape.dtype == DType::kBF16;
  for_each_isa([&] {
    EXPECT_LE(largest_difference(kernels(args), expected), bf16 ? 4e-3 : 3e-6)
        << estimator << " block " << block << " score heads " << score_heads;
  });
}

TEST(BlockScores, EqualTheReference) {
  const std::vector<Case> cases = {
      {{300}, {300}, 3, 1, 64, true, 0.0},
      {{131, 0, 1, 260}, {131, 70, 517, 0}, 4, 2, 17, true, 0.0},
      {{200, 5}, {90, 333}, 2, 2, 33, true, 0.0},  // more queries than keys
      {{140}, {333}, 6, 2, 24, false, 0.0},
      {{129}, {450}, 2, 1, 16, true, -0.3},
      {{77}, {200}, 2, 1, 8, true, 0.0, DType::kF16},
      {{300}, {471}, 4, 2, 64, true, 0.0, DType::kBF16},
      {{150, 20}, {150, 301}, 2, 1, 31, false, 0.0, DType::kBF16},
  };
  for (const Case& c : cases) {
    const Problem p(c);
    SCOPED_TRACE(testing::Message() << c);
    for (const char* estimator : kEstimators) {
      expect_close(p, estimator, 64, c.heads);
      expect_close(p, estimator, 128, c.kv_heads);
    }
  }
}

TEST(BlockScores, ManyRowsOfManyHeads) {
  const Problem p({{500}, {900}, 16, 2, 64, true, 0.0});
  expect_close(p, "sampled:4", 128, 16);
  expect_close(p, "mean+pooled:1", 64, 2);
}

TEST(BlockScores, ScaleZeroIsUniform) {
  Problem p({{200}, {512}, 1, 1, 16, false, 1.0});
  p.shape.scale = 0.0;
  for (const char* estimator : kEstimators) {
    for (const float score : kernels(make_args(p, estimator, 64, 1)))
      EXPECT_NEAR(score, 0.125f, 1e-6f) << estimator;
  }
}

TEST(BlockScores, HugeLogitsStayShares) {
  Problem p({{256}, {700}, 2, 1, 64, true, 0.0});
  p.q.fill(1, 1e4f);
  p.k.fill(2, 1e4f);
  for (const char* estimator : {"sampled:16", "antidiagonal:16", "mean", "pooled_plain:128"}) {
    const ScoreArgs args = make_args(p, estimator, 128, 2);
    const std::vector<float> scores = kernels(args);
    for (size_t row = 0; row < scores.size() / size_t(args.key_blocks); ++row) {
      double sum = 0.0;
      for (size_t j = 0; j < size_t(args.key_blocks); ++j)
        sum += double(scores[row * size_t(args.key_blocks) + j]);
      EXPECT_NEAR(sum, 1.0, 1e-5) << estimator;
    }
  }
}

TEST(BlockScores, ExactRowsGiveTheirLogSumExp) {
  const Problem p({{300, 70}, {411, 70}, 4, 2, 32, true, 0.0});
  attention::Results dense(p);
  attention::varlen_forward_ref(attention::forward_args(p, dense));
  for_each_isa([&] {
    ScoreArgs args = make_args(p, "sampled:16+mean+antidiagonal:16", 128, 4);
    std::vector<float> lse(size_t(p.queries() * 4), NAN);
    args.row_lse = lse.data();
    args.lse_stride = 4;
    kernels(args);
    for (int64_t b = 0; b < 2; ++b) {
      for (int64_t t = p.cu_q[size_t(b)]; t < p.cu_q[size_t(b) + 1]; ++t) {
        const int64_t row = t - p.cu_q[size_t(b)], n = p.cu_q[size_t(b) + 1] - p.cu_q[size_t(b)];
        const bool sampled = row == std::min(row / 16 * 16 + 8, n - 1);
        for (int64_t h = 0; h < 4; ++h) {
          const float found = lse[size_t(t * 4 + h)];
          ASSERT_EQ(!std::isnan(found), sampled) << t;
          if (sampled) {
            ASSERT_NEAR(found, dense.lse[size_t(h * p.queries() + t)], 4e-5f);
          }
        }
      }
    }
  });
}

// What a row does not see must not matter, and what it sees must never be lost silently.
TEST(BlockScores, BadKeysSpoilTheRowsThatSeeThem) {
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    Problem p({{384}, {384}, 1, 1, 64, true, 0.0, dtype});
    p.k.set(200 * 64 + 5, NAN);
    for (const char* estimator : {"sampled:16", "antidiagonal:16", "pooled:128", "outlier"}) {
      for_each_isa([&] {
        const std::vector<float> scores = kernels(make_args(p, estimator, 128, 1));
        for (int64_t j = 0; j < 3; ++j) EXPECT_FALSE(std::isnan(scores[size_t(j)])) << estimator;
        for (int64_t j = 0; j < 3; ++j) EXPECT_TRUE(std::isnan(scores[size_t(6 + j)])) << estimator;
      });
    }
  }
  Problem p({{128}, {128}, 1, 1, 16, true, 0.0});
  for (int64_t i = 0; i < p.k.elements(); ++i) p.k.set(i, attention::kInfinity);
  EXPECT_TRUE(std::isnan(kernels(make_args(p, "sampled:16", 64, 1))[0]));
}

TEST(BlockScores, ABatchIsItsSequences) {
  const std::vector<int32_t> queries = {150, 3, 260}, keys = {150, 400, 300};
  for (const char* estimator : kEstimators) {
    const Problem all({queries, keys, 2, 1, 32, true, 0.0});
    const ScoreArgs args = make_args(all, estimator, 64, 2);
    const std::vector<float> scores = kernels(args);
    EXPECT_EQ(kernels(args, 3), scores) << estimator;
    for (size_t b = 0; b < queries.size(); ++b) {
      Problem one({{queries[b]}, {keys[b]}, 2, 1, 32, true, 0.0});
      for (int64_t i = 0; i < one.q.elements(); ++i) one.q.set(i, all.q[all.cu_q[b] * 64 + i]);
      for (int64_t i = 0; i < one.k.elements(); ++i) one.k.set(i, all.k[all.cu_k[b] * 32 + i]);
      const ScoreArgs own = make_args(one, estimator, 64, 2);
      const std::vector<float> expected = kernels(own);
      for (int64_t r = 0; r < 2 * own.query_blocks; ++r) {
        const int64_t row =
            (int64_t(b) * 2 + r / own.query_blocks) * args.query_blocks + r % own.query_blocks;
        for (int64_t j = 0; j < own.key_blocks; ++j)
          ASSERT_EQ(scores[size_t(row * args.key_blocks + j)],
                    expected[size_t(r * own.key_blocks + j)])
              << estimator << " sequence " << b;
      }
    }
  }
}

// Groups of 16 begin at blocks, so a cut of the queries at a block moves no group.
TEST(BlockScores, QueriesInPieces) {
  const Problem whole({{512}, {700}, 2, 1, 32, true, 0.0});
  for (const char* estimator : kEstimators) {
    if (std::string_view(estimator) == "pooled:512") continue;
    const ScoreArgs args = make_args(whole, estimator, 64, 1);
    const std::vector<float> expected = kernels(args);
    const int32_t cu_q[] = {0, 256}, cu_k[] = {0, 700};
    ScoreArgs tail = args;
    tail.shape.cu_seqlens_q = cu_q;
    tail.shape.cu_seqlens_k = cu_k;
    tail.query_blocks = 2;
    tail.q.data = static_cast<const float*>(args.q.data) + 256 * args.q.token_stride;
    const std::vector<float> scores = kernels(tail);
    EXPECT_TRUE(std::equal(scores.begin(), scores.end(), expected.begin() + 2 * args.key_blocks))
        << estimator;
  }
}

}  // namespace
}  // namespace longspur::kernels::xattn
