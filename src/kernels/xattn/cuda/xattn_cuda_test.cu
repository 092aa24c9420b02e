#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include "base/half.h"
#include "kernels/common/cuda/device.h"
#include "kernels/common/cuda/device_test.cuh"
#include "kernels/xattn/api.h"
#include "kernels/xattn/cuda/xattn_cuda.h"

namespace longspur::kernels::xattn::cuda {
namespace {

using testing::DeviceArray;

struct Case {
  std::string estimator;
  std::vector<int32_t> n, m;
  int64_t heads = 4, kv_heads = 2, dim = 128;
  Type type = Type::kBF16;
  bool causal = true;
  int64_t block = 128;
  int64_t padding = 0;  // elements between tokens; not a multiple of 8: the simple kernels
  float amplitude = 1.0f;
  double tolerance = 1e-4;  // of a score, relative
};

std::string name_of(const Case& c) {
  std::ostringstream name;
  name << c.estimator << " D " << c.dim << " H " << c.heads << "/" << c.kv_heads << " block "
       << c.block << (c.causal ? " causal" : " full") << " type " << int(c.type);
  for (size_t i = 0; i < c.n.size(); ++i) name << " " << c.n[i] << "x" << c.m[i];
  return name.str();
}

std::vector<int32_t> sums_of(const std::vector<int32_t>& lengths) {
  std::vector<int32_t> sums{0};
  for (const int32_t n : lengths) sums.push_back(sums.back() + n);
  return sums;
}

// Bytes of values in an operand type.
std::vector<uint8_t> encode(const std::vector<float>& values, Type type) {
  std::vector<uint8_t> bytes(values.size() * (type == Type::kF32 ? 4 : 2));
  for (size_t i = 0; i < values.size(); ++i) {
    const uint16_t half = type == Type::kBF16 ? float_to_bf16(values[i]) : float_to_fp16(values[i]);
    if (type == Type::kF32)
      std::memcpy(&bytes[i * 4], &values[i], 4);
    else
      std::memcpy(&bytes[i * 2], &half, 2);
  }
  return bytes;
}

// Operands of a case on the host; the scores of the CPU and of the device.
struct Attempt {
  explicit Attempt(const Case& c, unsigned seed = 1)
      : c(c),
        cu_q(sums_of(c.n)),
        cu_k(sums_of(c.m)),
        q(values(cu_q.back(), c.heads, seed)),
        k(values(cu_k.back(), c.kv_heads, seed + 1)),
        query_blocks(ceil_div(longest(c.n), kQueryBlock)),
        key_blocks(ceil_div(longest(c.m), c.block)) {}

  static int64_t longest(const std::vector<int32_t>& n) {
    return *std::max_element(n.begin(), n.end());
  }
  std::vector<float> values(int64_t tokens, int64_t heads, unsigned seed) const {
    return testing::random_floats(size_t(tokens * stride(heads)), seed, c.amplitude);
  }
  int64_t stride(int64_t heads) const { return heads * c.dim + c.padding; }
  float scale() const { return 1.0f / std::sqrt(float(c.dim)); }
  DType dtype() const {
    return c.type == Type::kF32 ? DType::kF32 : c.type == Type::kBF16 ? DType::kBF16 : DType::kF16;
  }
  Estimator estimator() const { return parse_estimator(c.estimator, 16, c.block, longest(c.m)); }

  std::vector<float> on_cpu(int64_t score_heads) const {
    std::vector<float> scores(
        size_t(int64_t(c.n.size()) * score_heads * query_blocks * key_blocks));
    const std::vector<uint8_t> q_bytes = encode(q, c.type), k_bytes = encode(k, c.type);
    xattn::ScoreArgs args;
    args.shape = {cu_q.data(), cu_k.data(), int64_t(c.n.size()), c.heads, c.kv_heads,
                  c.dim,       c.causal,    double(scale()),     dtype()};
    args.q = {q_bytes.data(), stride(c.heads), c.dim};
    args.k = {k_bytes.data(), stride(c.kv_heads), c.dim};
    args.estimator = estimator();
    args.block_size = c.block;
    args.scores = scores.data();
    args.score_heads = score_heads;
    args.query_blocks = query_blocks;
    args.key_blocks = key_blocks;
    block_scores_ref(args);
    return scores;
  }

  std::vector<float> on_device(int64_t score_heads) const {
    const DeviceArray<uint8_t> q_device(encode(q, c.type)), k_device(encode(k, c.type));
    const DeviceArray<int32_t> cu_q_device(cu_q), cu_k_device(cu_k);
    const DeviceArray<float> scores(std::vector<float>(
        size_t(int64_t(c.n.size()) * score_heads * query_blocks * key_blocks), NAN));
    ScoreArgs args;
    args.cu_seqlens_q = cu_q_device.get();
    args.cu_seqlens_k = cu_k_device.get();
    args.batch = int64_t(c.n.size());
    args.heads = c.heads;
    args.kv_heads = c.kv_heads;
    args.head_dim = c.dim;
    args.total_q = cu_q.back();
    args.total_k = cu_k.back();
    args.max_seqlen_q = longest(c.n);
    args.max_seqlen_k = longest(c.m);
    args.causal = c.causal;
    args.scale = scale();
    args.type = c.type;
    args.q = q_device.get();
    args.q_token_stride = stride(c.heads);
    args.q_head_stride = c.dim;
    args.k = k_device.get();
    args.k_token_stride = stride(c.kv_heads);
    args.k_head_stride = c.dim;
    args.estimator = estimator();
    args.block_size = c.block;
    args.scores = scores.get();
    args.score_heads = score_heads;
    args.query_blocks = query_blocks;
    args.key_blocks = key_blocks;
    // All ones are NaN: what is read without having been written shows.
    const DeviceArray<uint8_t> workspace(
        std::vector<uint8_t>(size_t(block_scores_workspace_bytes(args)), 0xff));
    args.workspace = workspace.get();
    const CudaStatus status = block_scores(args, nullptr);
    EXPECT_EQ(status, nullptr) << status;
    return scores.download();
  }

  Case c;
  std::vector<int32_t> cu_q, cu_k;
  std::vector<float> q, k;
  int64_t query_blocks, key_blocks;
};

// The largest error relative to the score and the row's mean score.
double worst_error(const Attempt& run,
                   const std::vector<float>& found,
                   const std::vector<float>& expected) {
  double worst = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    const double error = std::abs(double(found[i]) - double(expected[i]));
    const double size = double(expected[i]) + 0.02 / double(run.key_blocks);
    if (std::isnan(error)) return error;
    worst = std::max(worst, error / size);
  }
  return worst;
}

void expect_scores(const Case& c) {
  LONGSPUR_REQUIRE_DEVICE();
  const Attempt run(c);
  for (const int64_t heads : {c.heads, c.kv_heads}) {
    const double worst = worst_error(run, run.on_device(heads), run.on_cpu(heads));
    std::printf("%-70s %lld score heads: %.2e\n", name_of(c).c_str(), static_cast<long long>(heads),
                worst);
    EXPECT_TRUE(worst <= c.tolerance) << name_of(c) << ": " << worst;
    if (c.heads == c.kv_heads) break;
  }
}

// Lengths that are no multiple of anything, a query shorter than its keys, and one without keys for
// its first rows.
const std::vector<int32_t> kRaggedN{301, 0, 517, 77, 200}, kRaggedM{301, 33, 803, 1031, 90};

TEST(XattnCuda, StridedTermsAreThoseOfTheCpu) {
  for (const char* estimator : {"antidiagonal:16", "diagonal:16", "antidiagonal:8",
                                "antidiagonal:4", "antidiagonal:32", "antidiagonal:64"}) {
    for (const int64_t block : {128, 64}) {
      expect_scores({estimator, {2100}, {2100}, 4, 2, 64, Type::kBF16, true, block});
      expect_scores({estimator, kRaggedN, kRaggedM, 2, 1, 128, Type::kF16, true, block});
    }
    expect_scores({estimator, kRaggedN, kRaggedM, 2, 2, 64, Type::kBF16, false, 128});
    expect_scores({estimator, {640}, {2304}, 3, 1, 64, Type::kBF16, false, 128});
  }
  expect_scores({"antidiagonal:16", {4096}, {4096}, 2, 1, 128, Type::kBF16, true, 128, 0, 4.0f});
  expect_scores({"antidiagonal:16", {9}, {9}, 2, 1, 128});
  // Whole groups of a sequence that are not whole groups of the tensor.
  expect_scores({"antidiagonal:16", {137, 256}, {259, 512}, 2, 1, 128});
  expect_scores({"antidiagonal:64", {137, 256}, {259, 512}, 2, 1, 128, Type::kBF16, false});
}

TEST(XattnCuda, TermsAgainstExactKeysAreThoseOfTheCpu) {
  for (const char* estimator : {"sampled:16", "sampled:128", "outlier", "sampled:1"}) {
    for (const int64_t block : {128, 64}) {
      expect_scores({estimator, {2100}, {2100}, 4, 2, 64, Type::kBF16, true, block});
      expect_scores({estimator, kRaggedN, kRaggedM, 2, 1, 128, Type::kF16, true, block});
    }
    expect_scores({estimator, kRaggedN, kRaggedM, 6, 2, 128, Type::kBF16, false, 64});
  }
  // Large logits: the reference of a row has to be moved.
  expect_scores({"sampled:16", {4200}, {4200}, 2, 1, 128, Type::kBF16, true, 128, 0, 4.0f});
  expect_scores({"sampled:16", {4200}, {4200}, 2, 1, 128, Type::kBF16, true, 128, 0, 16.0f, 3e-4});
}

TEST(XattnCuda, TermsThatRoundMeansAreCloseToTheCpu) {
  for (const char* estimator :
       {"pooled:128", "pooled_plain:128", "pooled:16", "pooled:512", "mean", "block_mean",
        "pooled:128+sampled:128+mean", "0.5*pooled:64+0.2*antidiagonal:16+0.2*outlier+0.1*mean"}) {
    expect_scores({estimator, {2100}, {2100}, 4, 2, 64, Type::kBF16, true, 128, 0, 1.0f, 2e-2});
    expect_scores({estimator, kRaggedN, kRaggedM, 4, 1, 128, Type::kF16, true, 64, 0, 1.0f, 4e-3});
    expect_scores(
        {estimator, kRaggedN, kRaggedM, 2, 2, 128, Type::kF16, false, 128, 0, 1.0f, 4e-3});
  }
}

TEST(XattnCuda, AnySizeTypeAndStrideIsExact) {
  for (const char* estimator : {"antidiagonal:16", "antidiagonal:4", "diagonal:64", "pooled:128",
                                "pooled:8", "pooled:1024", "sampled:16", "outlier", "mean",
                                "block_mean", "pooled:128+sampled:128+mean+antidiagonal:16"}) {
    expect_scores(
        {estimator, {301, 0, 150, 77}, {301, 33, 403, 331}, 6, 2, 40, Type::kF32, true, 64});
    expect_scores({estimator, {301, 150}, {301, 403}, 2, 1, 33, Type::kBF16, false, 128, 3});
    expect_scores({estimator, {200}, {130}, 2, 2, 64, Type::kF32, true, 128});
  }
}

TEST(XattnCuda, ANaNOnlySpoilsTheRowsThatSeeIt) {
  LONGSPUR_REQUIRE_DEVICE();
  for (const char* estimator : {"antidiagonal:16", "sampled:16", "mean", "pooled:128"}) {
    Attempt run({estimator, {1024}, {1024}, 2, 1, 128});
    const int64_t key = 600;
    run.k[size_t(key * run.stride(1))] = NAN;
    const std::vector<float> scores = run.on_device(2);
    for (int64_t i = 0; i < 8; ++i) {
      const float score = scores[size_t(i * run.key_blocks)];
      EXPECT_EQ(std::isnan(score), i >= key / kQueryBlock) << estimator << " block " << i;
    }
  }
}

TEST(XattnCuda, ScoresAreTheSameEveryTime) {
  LONGSPUR_REQUIRE_DEVICE();
  for (const char* estimator : {"antidiagonal:16", "pooled:128+sampled:128+mean"}) {
    const Attempt run({estimator, {3000}, {3000}, 4, 1, 128});
    EXPECT_EQ(run.on_device(4), run.on_device(4));
  }
}

TEST(XattnCuda, RefusesWhatItCannotDo) {
  ScoreArgs args;
  EXPECT_NE(block_scores(args, nullptr), nullptr);
  args.estimator.terms.push_back({});
  args.block_size = 96;
  EXPECT_NE(block_scores(args, nullptr), nullptr);
}

// Rows of scores that are hard to select from.
std::vector<float> score_row(std::mt19937& random, int64_t blocks) {
  std::vector<float> row(static_cast<size_t>(blocks));
  const unsigned kind = random() % 8;
  std::exponential_distribution<float> exponential(1.0f);
  for (float& x : row) {
    x = exponential(random) / float(blocks);
    if (kind == 1) x = float(random() % 4);                // ties, zeros
    if (kind == 2) x = std::exp2(-float(random() % 160));  // down to subnormal
    if (kind == 3) x = random() % 3 == 0 ? x : 0.0f;
    if (kind == 4) x = 0.25f;
    if (kind == 5) x *= 1e-38f;
  }
  if (kind == 6) row[random() % row.size()] = random() % 2 == 0 ? NAN : INFINITY;
  if (kind == 7) row[random() % row.size()] = random() % 2 == 0 ? -0.0f : -1.0f;
  return row;
}

void expect_masks(
    int64_t n, int64_t m, int64_t rows_a_block, unsigned seed, const SelectOptions& options) {
  std::mt19937 random(seed);
  const int64_t query_blocks = ceil_div(n, kQueryBlock),
                key_blocks = ceil_div(m, options.block_size);
  const int64_t heads = rows_a_block;
  std::vector<float> scores, thresholds;
  for (int64_t h = 0; h < heads; ++h) {
    constexpr float kSpecial[] = {0.0f, 1.0f, 0.9f, 0.5f, 1.5f, -1.0f, NAN, 1e-30f};
    thresholds.push_back(random() % 2 == 0 ? kSpecial[random() % 8]
                                           : float(random() % 10000) * 1e-4f);
    for (int64_t i = 0; i < query_blocks; ++i) {
      const std::vector<float> row = score_row(random, key_blocks);
      scores.insert(scores.end(), row.begin(), row.end());
    }
  }
  const std::vector<int32_t> cu_q{0, int32_t(n)}, cu_k{0, int32_t(m)};
  const int64_t words = BlockMask::words_of(key_blocks), rows = heads * query_blocks;
  std::vector<uint32_t> expected(size_t(rows * words));
  std::vector<RowStats> expected_stats(static_cast<size_t>(rows));
  SelectArgs args;
  args.scores = scores.data();
  args.threshold = thresholds.data();
  args.cu_seqlens_q = cu_q.data();
  args.cu_seqlens_k = cu_k.data();
  args.batch = 1;
  args.heads = heads;
  args.query_blocks = query_blocks;
  args.key_blocks = key_blocks;
  args.options = options;
  args.words = expected.data();
  args.stats = expected_stats.data();
  xattn::select(args, 0, rows);

  const DeviceArray<float> scores_device(scores), thresholds_device(thresholds);
  const DeviceArray<int32_t> cu_q_device(cu_q), cu_k_device(cu_k);
  const DeviceArray<uint32_t> words_device(std::vector<uint32_t>(expected.size(), 0xdeadbeefu));
  const DeviceArray<RowStats> stats_device(
      std::vector<RowStats>(size_t(rows), RowStats{-1, -1, -1.0f}));
  args.scores = scores_device.get();
  args.threshold = thresholds_device.get();
  args.cu_seqlens_q = cu_q_device.get();
  args.cu_seqlens_k = cu_k_device.get();
  args.words = words_device.get();
  args.stats = stats_device.get();
  ASSERT_EQ(select(args, nullptr), nullptr);
  const std::vector<uint32_t> found = words_device.download();
  const std::vector<RowStats> found_stats = stats_device.download();
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t w = 0; w < words; ++w)
      ASSERT_EQ(found[size_t(r * words + w)], expected[size_t(r * words + w)])
          << n << "x" << m << " seed " << seed << " row " << r << " word " << w << " threshold "
          << thresholds[size_t(r / query_blocks)];
    const RowStats &a = found_stats[size_t(r)], &b = expected_stats[size_t(r)];
    ASSERT_EQ(a.kept, b.kept) << r;
    ASSERT_EQ(a.visible, b.visible) << r;
    ASSERT_EQ(a.kept_share, b.kept_share) << r;
  }
}

TEST(XattnCuda, SelectsExactlyTheBlocksOfTheCpu) {
  LONGSPUR_REQUIRE_DEVICE();
  unsigned seed = 1;
  for (const int64_t block : {128, 64}) {
    for (const bool causal : {true, false}) {
      for (const Rule rule : {Rule::kShare, Rule::kOfMax}) {
        for (const int64_t local : {0, 1, 3}) {
          const SelectOptions options{rule, block, local, local, causal};
          expect_masks(1000, 1000, 24, seed++, options);  // 10,000 rows in all
          expect_masks(300, 5000, 40, seed++, options);
          expect_masks(700, 31000, 16, seed++, options);
          expect_masks(400, 100, 16, seed++, options);
        }
        expect_masks(150, 130001, 8, seed++, {rule, block, 1, 1, causal});
        expect_masks(130, 1000003, 8, seed++, {rule, block, 1, 1, causal});
      }
    }
  }
}

TEST(XattnCuda, MasksOfFp32ScoresAreThoseOfTheCpu) {
  LONGSPUR_REQUIRE_DEVICE();
  // Selection after scoring: rows whose cut falls between nearly equal scores may differ.
  const Attempt run({"antidiagonal:16", {2000}, {2000}, 4, 2, 64, Type::kF32});
  const std::vector<float> device = run.on_device(4), cpu = run.on_cpu(4);
  const int64_t words = BlockMask::words_of(run.key_blocks);
  const SelectOptions options;
  int differing = 0;
  for (int64_t r = 0; r < 4 * run.query_blocks; ++r) {
    std::vector<uint32_t> a(static_cast<size_t>(words)), b(static_cast<size_t>(words));
    const int64_t i = r % run.query_blocks;
    select_row(device.data() + r * run.key_blocks, 0.9f, i, 2000, 2000, options, a.data(), words);
    select_row(cpu.data() + r * run.key_blocks, 0.9f, i, 2000, 2000, options, b.data(), words);
    differing += a == b ? 0 : 1;
  }
  EXPECT_EQ(differing, 0);
}

}  // namespace
}  // namespace longspur::kernels::xattn::cuda
