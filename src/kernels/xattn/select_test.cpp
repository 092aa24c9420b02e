// Selection and the estimator's text: golden rows, laws, and select() against sorting.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "base/error.h"
#include "base/rng.h"
#include "kernels/xattn/api.h"
#include "kernels/xattn/select_math.h"

namespace longspur::kernels::xattn {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

using Blocks = std::vector<int64_t>;

struct Selected {
  Blocks blocks;
  RowStats stats;
};

Selected select_one(const std::vector<float>& scores,
                    float threshold,
                    int64_t i,
                    int64_t n,
                    int64_t m,
                    const SelectOptions& options = {}) {
  const int64_t row_words = BlockMask::words_of(int64_t(scores.size()));
  std::vector<uint32_t> words(size_t(row_words), 0xffffffffu);
  Selected selected;
  selected.stats = select_row(scores.data(), threshold, i, n, m, options, words.data(), row_words);
  for (int64_t j = 0; j < row_words * 32; ++j)
    if (has_block(words.data(), j)) selected.blocks.push_back(j);
  return selected;
}

TEST(Select, GoldenRows) {
  const std::vector<std::vector<float>> rows = {
      {1, 0, 0, 0}, {.3f, .7f, 0, 0}, {.1f, .5f, .4f, 0}, {.05f, .6f, .15f, .2f}};
  const std::vector<std::pair<float, std::vector<Blocks>>> expected = {
      {0.0f, {{0}, {0, 1}, {0, 2}, {0, 3}}},
      {0.5f, {{0}, {0, 1}, {0, 2}, {0, 1, 3}}},
      {0.8f, {{0}, {0, 1}, {0, 1, 2}, {0, 1, 3}}},
      {0.9f, {{0}, {0, 1}, {0, 1, 2}, {0, 1, 2, 3}}},
      {1.0f, {{0}, {0, 1}, {0, 1, 2}, {0, 1, 2, 3}}},
  };
  for (const auto& [threshold, blocks] : expected) {
    for (int64_t i = 0; i < 4; ++i)
      EXPECT_EQ(select_one(rows[size_t(i)], threshold, i, 512, 512).blocks, blocks[size_t(i)])
          << "threshold " << threshold << " row " << i;
  }
}

TEST(Select, TiesGoToTheLowerIndex) {
  const std::vector<float> scores(8, 0.125f);
  SelectOptions options;
  options.sink_blocks = options.local_blocks = 0;
  EXPECT_EQ(select_one(scores, 0.5f, 7, 1024, 1024, options).blocks, (Blocks{0, 1, 2, 3}));
  EXPECT_EQ(select_one(scores, 0.51f, 7, 1024, 1024, options).blocks, (Blocks{0, 1, 2, 3, 4}));
  EXPECT_EQ(select_one(scores, 0.5f, 7, 1024, 1024).blocks, (Blocks{0, 1, 2, 7}));
  // scores that differ, but not in units of the row, keep their order
  const std::vector<float> tiny = {0x1p-60f, 0x1p-59f, 1.0f, 0x1p-61f};
  EXPECT_EQ(select_one(tiny, 0.5f, 3, 512, 512, options).blocks, (Blocks{2}));
  EXPECT_EQ(select_one(tiny, 1.0f, 3, 512, 512, options).blocks, (Blocks{0, 1, 2, 3}));
}

TEST(Select, RowsWithoutMassKeepTheForcedBlocks) {
  const std::vector<float> zeros = {0, -0.0f, 0, 0, 0, 0};
  for (const float threshold : {0.0f, 0.5f, 0.999f, 1.0f}) {
    const Selected selected = select_one(zeros, threshold, 5, 768, 768);
    EXPECT_EQ(selected.blocks, (Blocks{0, 5}));
    EXPECT_EQ(selected.stats.kept_share, 1.0f);
  }
}

TEST(Select, WhatIsNoScoreKeepsEveryVisibleBlock) {
  for (const float bad : {kNan, -kNan, kInfinity, -kInfinity, -0.5f, -1e-40f}) {
    std::vector<float> scores = {.5f, .5f, .0f, .0f, bad};
    EXPECT_EQ(select_one(scores, 0.1f, 4, 640, 640).blocks, (Blocks{0, 1, 2, 3, 4}));
    // not visible, not read
    EXPECT_EQ(select_one(scores, 0.0f, 2, 640, 640).blocks, (Blocks{0, 2}));
  }
  const std::vector<float> scores = {1, 0, 0, 0};
  EXPECT_EQ(select_one(scores, kNan, 3, 512, 512).blocks, (Blocks{0, 1, 2, 3}));
  EXPECT_EQ(select_one(scores, -1.0f, 3, 512, 512).blocks, (Blocks{0, 3}));
  EXPECT_EQ(select_one(scores, kInfinity, 3, 512, 512).blocks, (Blocks{0, 3}));
}

TEST(Select, SinkAndLocalBlocks) {
  const std::vector<float> scores(10, 0.0f);
  const auto forced = [&](int64_t sink, int64_t local, int64_t i, int64_t n, int64_t m,
                          int64_t block_size, bool causal) {
    SelectOptions options;
    options.sink_blocks = sink;
    options.local_blocks = local;
    options.block_size = block_size;
    options.causal = causal;
    return select_one(scores, 0.5f, i, n, m, options).blocks;
  };
  EXPECT_EQ(forced(0, 0, 3, 512, 512, 128, true), Blocks{});
  EXPECT_EQ(forced(2, 0, 3, 512, 512, 128, true), (Blocks{0, 1}));
  EXPECT_EQ(forced(9, 0, 1, 512, 512, 128, true), (Blocks{0, 1}));
  EXPECT_EQ(forced(0, 1, 3, 512, 512, 128, true), (Blocks{3}));
  EXPECT_EQ(forced(0, 3, 3, 512, 512, 128, true), (Blocks{1, 2, 3}));
  EXPECT_EQ(forced(0, 9, 3, 512, 512, 128, true), (Blocks{0, 1, 2, 3}));
  // two blocks of 64 keys are on the diagonal
  EXPECT_EQ(forced(0, 1, 3, 512, 512, 64, true), (Blocks{6, 7}));
  EXPECT_EQ(forced(1, 2, 3, 512, 512, 64, true), (Blocks{0, 5, 6, 7}));
  // a prefix that is no multiple of a block: rows at 200 ... 327
  EXPECT_EQ(forced(0, 1, 0, 128, 328, 128, true), (Blocks{1, 2}));
  EXPECT_EQ(forced(0, 1, 0, 128, 328, 64, true), (Blocks{3, 4, 5}));
  // one row at the end of its own block
  EXPECT_EQ(forced(0, 1, 0, 1, 256, 128, true), (Blocks{1}));
  // more queries than keys: rows of the first block see nothing
  EXPECT_EQ(forced(1, 1, 0, 300, 100, 128, true), Blocks{});
  EXPECT_EQ(forced(0, 1, 1, 300, 100, 128, true), (Blocks{0}));
  // not causal: the blocks that hold the rows' own positions, and as many around them
  EXPECT_EQ(forced(1, 1, 3, 1280, 1280, 128, false), (Blocks{0, 3}));
  EXPECT_EQ(forced(0, 2, 3, 1280, 1280, 128, false), (Blocks{2, 3, 4}));
  EXPECT_EQ(forced(0, 1, 9, 1280, 1280, 128, false), (Blocks{9}));
  EXPECT_EQ(forced(0, 1, 0, 300, 100, 128, false), Blocks{});
}

TEST(Select, ShareOfLargest) {
  SelectOptions options;
  options.rule = Rule::kOfMax;
  const std::vector<float> scores = {0, .1f, .4f, .2f, 0};
  EXPECT_EQ(select_one(scores, 0.5f, 4, 640, 640, options).blocks, (Blocks{0, 2, 3, 4}));
  EXPECT_EQ(select_one(scores, 0.51f, 4, 640, 640, options).blocks, (Blocks{0, 2, 4}));
  EXPECT_EQ(select_one(scores, 1.0f, 4, 640, 640, options).blocks, (Blocks{0, 2, 4}));
  EXPECT_EQ(select_one(scores, 0.0f, 4, 640, 640, options).blocks, (Blocks{0, 1, 2, 3, 4}));
}

TEST(Select, RequiredUnitsRoundUp) {
  const auto required = [](float threshold, uint64_t total) {
    return required_units(std::bit_cast<uint32_t>(threshold), total);
  };
  EXPECT_EQ(required(0.0f, 1000), 0u);
  EXPECT_EQ(required(0.5f, 1000), 500u);
  EXPECT_EQ(required(0.5f, 1001), 501u);
  EXPECT_EQ(required(0x1p-20f, uint64_t{1} << 62), uint64_t{1} << 42);
  EXPECT_EQ(required(0x1p-20f, (uint64_t{1} << 62) + 1), (uint64_t{1} << 42) + 1);
  EXPECT_EQ(required(0x1p-149f, 1), 1u);
  EXPECT_EQ(required(0x1p-149f, 0), 0u);
  EXPECT_EQ(required(0x1p-32f, uint64_t{3} << 32), 3u);
  EXPECT_EQ(required(0x1p-33f, uint64_t{3} << 32), 2u);
  const uint64_t most = (uint64_t{1} << 63) - 1;
  EXPECT_EQ(required(0x1.fffffep-1f, most), most - (most >> 24));
}

// --- random rows ---

struct Problem {
  std::vector<int32_t> cu_q, cu_k;
  std::vector<float> scores, threshold;
  SelectArgs args;
};

float random_score(uint64_t seed, uint64_t i, int kind) {
  const auto bits = philox4x32(seed, 1, i);
  const float u = uniform01(bits[0]);
  switch (kind) {
    case 0:
      return u;
    case 1:  // many ties
      return float(bits[0] % 4) * 0.25f;
    case 2:  // over the whole range of fp32, subnormal numbers too
      return std::ldexp(u, -int(bits[1] % 150));
    case 3:  // nearly everything in one block
      return bits[1] % 7 == 0 ? u : u * 1e-9f;
    default:
      return bits[1] % 3 == 0 ? kNan : u;
  }
}

Problem make_problem(uint64_t seed) {
  const auto pick = [&](uint64_t i, int64_t n) { return int64_t(philox4x32(seed, 0, i)[0] % n); };
  Problem p;
  p.cu_q = p.cu_k = {0};
  SelectArgs& args = p.args;
  args.batch = 1 + pick(0, 3);
  args.heads = 1 + pick(1, 3);
  args.options.block_size = pick(2, 2) == 0 ? 64 : 128;
  args.options.rule = pick(3, 4) == 0 ? Rule::kOfMax : Rule::kShare;
  args.options.sink_blocks = pick(4, 4);
  args.options.local_blocks = pick(5, 4);
  args.options.causal = pick(6, 3) != 0;
  int64_t most_q = 1, most_k = 1;
  for (int64_t b = 0; b < args.batch; ++b) {
    const int64_t n = pick(10 + uint64_t(b), 700), m = pick(20 + uint64_t(b), 3) == 0
                                                           ? pick(30 + uint64_t(b), 700)
                                                           : n + pick(30 + uint64_t(b), 6000);
    p.cu_q.push_back(p.cu_q.back() + int32_t(n));
    p.cu_k.push_back(p.cu_k.back() + int32_t(m));
    most_q = std::max(most_q, n);
    most_k = std::max(most_k, m);
  }
  args.query_blocks = ceil_div(most_q, kQueryBlock);
  args.key_blocks = ceil_div(most_k, args.options.block_size);
  const int64_t rows = args.batch * args.heads * args.query_blocks;
  for (int64_t i = 0; i < rows * args.key_blocks; ++i)
    p.scores.push_back(random_score(seed, uint64_t(i), int(i / args.key_blocks % 5)));
  const float thresholds[] = {0.0f, 1.0f, 0.9f, 0.5f, 0.01f, 1e-30f, 0x1.fffffep-1f, kNan, 2.0f};
  for (int64_t h = 0; h < args.heads; ++h)
    p.threshold.push_back(thresholds[pick(40 + uint64_t(h), 9)]);
  args.cu_seqlens_q = p.cu_q.data();
  args.cu_seqlens_k = p.cu_k.data();
  args.scores = p.scores.data();
  args.threshold = p.threshold.data();
  return p;
}

struct Masks {
  std::vector<uint32_t> words;
  std::vector<RowStats> stats;
};
template <class Run>
Masks run(const Problem& p, Run run) {
  const int64_t rows = p.args.batch * p.args.heads * p.args.query_blocks;
  Masks masks;
  masks.words.assign(size_t(rows * BlockMask::words_of(p.args.key_blocks)), 0xdeadbeefu);
  masks.stats.resize(size_t(rows));
  SelectArgs args = p.args;
  args.words = masks.words.data();
  args.stats = masks.stats.data();
  run(args, rows);
  return masks;
}

TEST(Select, EqualsSorting) {
  for (uint64_t seed = 0; seed < 400; ++seed) {
    const Problem p = make_problem(seed);
    const Masks expected = run(p, [](const SelectArgs& args, int64_t) { select_ref(args); });
    const Masks found = run(p, [](const SelectArgs& args, int64_t rows) {
      select(args, rows / 2, rows);
      select(args, 0, rows / 2);
    });
    ASSERT_EQ(found.words, expected.words) << "seed " << seed;
    for (size_t r = 0; r < found.stats.size(); ++r) {
      ASSERT_EQ(found.stats[r].kept, expected.stats[r].kept) << "seed " << seed << " row " << r;
      ASSERT_EQ(found.stats[r].visible, expected.stats[r].visible);
      ASSERT_NEAR(found.stats[r].kept_share, expected.stats[r].kept_share, 1e-7f);
    }
  }
}

TEST(Select, LargerThresholdKeepsASupersetAndItsShare) {
  constexpr int64_t kBlocks = 61;
  SelectOptions options;
  for (uint64_t seed = 0; seed < 40; ++seed) {
    std::vector<float> scores;
    for (uint64_t j = 0; j < kBlocks; ++j) scores.push_back(random_score(seed, j, int(seed % 4)));
    std::vector<bool> before(kBlocks, false);
    double total = 0.0;
    for (const float s : scores) total += double(s);
    for (int step = 0; step <= 100; ++step) {
      const float threshold = float(step) / 100.0f;
      const Selected selected =
          select_one(scores, threshold, kBlocks - 1, 128 * kBlocks, 128 * kBlocks, options);
      std::vector<bool> kept(kBlocks, false);
      double mass = 0.0;
      for (const int64_t j : selected.blocks) {
        kept[size_t(j)] = true;
        mass += double(scores[size_t(j)]);
      }
      for (size_t j = 0; j < before.size(); ++j)
        ASSERT_LE(before[j], kept[j]) << "seed " << seed << " threshold " << threshold;
      // units cut off less than 2^-39 of the largest score a block
      ASSERT_GE(mass, double(threshold) * total * (1.0 - kBlocks * 0x1p-39));
      ASSERT_NEAR(selected.stats.kept_share, total > 0.0 ? mass / total : 1.0, 1e-6);
      before = kept;
    }
  }
}

// More blocks than a step of the search holds at a time.
TEST(Select, LongRowsEqualSorting) {
  constexpr int64_t kBlocks = 5003;
  const int32_t cu_q[] = {0, 128}, cu_k[] = {0, int32_t(kBlocks * 128)};
  for (int kind = 0; kind < 4; ++kind) {
    Problem p;
    for (uint64_t j = 0; j < kBlocks; ++j) p.scores.push_back(random_score(7, j, kind));
    p.threshold = {0.8f};
    p.args.scores = p.scores.data();
    p.args.threshold = p.threshold.data();
    p.args.cu_seqlens_q = cu_q;
    p.args.cu_seqlens_k = cu_k;
    p.args.batch = p.args.heads = p.args.query_blocks = 1;
    p.args.key_blocks = kBlocks;
    const Masks expected = run(p, [](const SelectArgs& args, int64_t) { select_ref(args); });
    const Masks found = run(p, [](const SelectArgs& args, int64_t) { select(args, 0, 1); });
    EXPECT_EQ(found.words, expected.words) << kind;
    EXPECT_LT(found.stats[0].kept, kBlocks) << kind;
  }
}

TEST(Select, ScalingByAPowerOfTwoChangesNothing) {
  std::vector<float> scores, scaled;
  for (uint64_t j = 0; j < 50; ++j) {
    scores.push_back(random_score(3, j, 0));
    scaled.push_back(scores.back() * 0x1p-100f);
  }
  for (const float threshold : {0.1f, 0.6f, 0.9f})
    EXPECT_EQ(select_one(scores, threshold, 49, 6400, 6400).blocks,
              select_one(scaled, threshold, 49, 6400, 6400).blocks);
}

// --- estimators ---

TEST(Estimator, ReadsTermsSizesAndWeights) {
  const auto read = [](std::string_view text) {
    return to_string(parse_estimator(text, 8, 128, 8192));
  };
  EXPECT_EQ(read("antidiagonal"), "antidiagonal:8");
  EXPECT_EQ(read("diagonal:32"), "diagonal:32");
  EXPECT_EQ(read("pooled+sampled+mean"), "pooled:128+sampled:16+mean");
  EXPECT_EQ(read("pooled_plain:1024+outlier+block_mean"), "pooled_plain:1024+outlier+block_mean");
  EXPECT_EQ(read("0.5*pooled:128+0.25*sampled:64+0.25*mean"),
            "0.5*pooled:128+0.25*sampled:64+0.25*mean");
  EXPECT_EQ(read("2*mean+2*sampled:1"), "mean+sampled:1");
  EXPECT_EQ(read("1e+2*mean+outlier"), "100*mean+1*outlier");
  EXPECT_EQ(read("default"), "sampled:16");
  EXPECT_EQ(to_string(parse_estimator("default", 8, 64, 131'072)), "pooled:128+sampled:128+mean");
}

void expect_usage_error(std::string_view text,
                        int64_t stride,
                        int64_t block_size,
                        std::string_view message) {
  try {
    parse_estimator(text, stride, block_size, 8192);
    ADD_FAILURE() << text << " was accepted";
  } catch (const UsageError& error) {
    EXPECT_EQ(error.what(), message);
  }
}

TEST(Estimator, NamesWhatIsWrong) {
  const std::string names =
      "expected one of antidiagonal, diagonal, pooled, pooled_plain, sampled, outlier, mean, "
      "block_mean";
  expect_usage_error("quest", 16, 128, "estimator: term: found 'quest', " + names);
  expect_usage_error("", 16, 128, "estimator: term: found '', " + names);
  expect_usage_error("mean+", 16, 128, "estimator: term: found '', " + names);
  expect_usage_error("+mean", 16, 128, "estimator: term: found '', " + names);
  expect_usage_error("mean +outlier", 16, 128, "estimator: term: found 'mean ', " + names);
  const std::string strides = ", expected 4, 8, 16, 32 or 64";
  expect_usage_error("antidiagonal:12", 16, 128,
                     "estimator: stride of 'antidiagonal': found 12" + strides);
  expect_usage_error("antidiagonal:128", 16, 128,
                     "estimator: stride of 'antidiagonal': found 128" + strides);
  expect_usage_error("diagonal", 2, 64, "estimator: stride of 'diagonal': found 2" + strides);
  expect_usage_error("antidiagonal", -16, 64,
                     "estimator: stride of 'antidiagonal': found -16" + strides);
  expect_usage_error(
      "sampled:256", 16, 128,
      "estimator: group of 'sampled': found 256, expected a power of two from 1 to 128");
  expect_usage_error(
      "pooled:2048", 16, 128,
      "estimator: group of 'pooled': found 2048, expected a power of two from 1 to 1024");
  expect_usage_error(
      "pooled:0", 16, 128,
      "estimator: group of 'pooled': found 0, expected a power of two from 1 to 1024");
  for (const char* size : {"", "x", "16x", " 16", "1.5", "99999999999999999999"})
    expect_usage_error(
        concat("sampled:", size), 16, 128,
        concat("estimator: size of 'sampled': found '", size, "', expected an integer"));
  expect_usage_error("mean:16", 16, 128,
                     "estimator: 'mean:16': found a size, expected none for 'mean'");
  for (const char* weight : {"0", "-1", "nan", "inf", "", "1x", "1e9"})
    expect_usage_error(concat(weight, "*mean"), 16, 128,
                       concat("estimator: weight of '", weight, "*mean': found '", weight,
                              "', expected a number from 1e-6 to 1e6"));
  expect_usage_error("mean+mean+mean+mean+mean+mean+mean+mean+mean", 16, 128,
                     "estimator: found more than 8 terms, expected 1 to 8");
  expect_usage_error("mean", 16, 96, "estimator: key block: found 96, expected 64 or 128");
}

}  // namespace
}  // namespace longspur::kernels::xattn
