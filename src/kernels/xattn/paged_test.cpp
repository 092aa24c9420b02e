// Selection over the paged cache against selection over packed tensors, and laws: chunks at
// multiples of 128 are the whole prompt, threads and batches change nothing.
#include "kernels/xattn/paged.h"

#include <gtest/gtest.h>

#include <vector>

#include "kernels/attention/paged_cases.h"
#include "kernels/attention/varlen.h"

namespace longspur::kernels::xattn {
namespace {

using attention::BatchShape;
using attention::Cache;
using attention::for_each_isa;
using attention::Heads;
using attention::KvType;

constexpr Heads kHeads{6, 2, 64};
constexpr int64_t kTokens = 500;
constexpr KvType kTypes[] = {KvType::kF32, KvType::kBF16, KvType::kNVFP4};
const std::vector<const char*> kEstimators = {"sampled:16", "pooled:128+sampled:128+mean",
                                              "antidiagonal:16", "diagonal:8+block_mean",
                                              "pooled_plain:64+outlier+0.5*antidiagonal:64+mean"};

struct Setting {
  const char* estimator = "sampled:16";
  int64_t block_size = 128, mask_heads = kHeads.q;
  std::vector<float> threshold = std::vector<float>(size_t(kHeads.q), 0.6f);
  SelectOptions options;
  float least_share = 0.0f;
  float* key_means = nullptr;
  float* row_lse = nullptr;
};

struct Selected {
  std::vector<uint32_t> words;
  std::vector<RowStats> stats;
  int64_t query_blocks = 0, row_words = 0;
  std::vector<uint32_t> row(int64_t mask_row, int64_t i) const {
    const auto* at = words.data() + (mask_row * query_blocks + i) * row_words;
    return {at, at + row_words};
  }
};

// Appends the rows and selects for them; the rows come back as the cache has rotated them.
Selected select_rows(ThreadPool& pool,
                     Cache& cache,
                     const Setting& setting,
                     std::vector<float>& rows,
                     const std::vector<int32_t>& cu_seqlens,
                     const std::vector<int32_t>& kv_lens,
                     size_t first = 0) {
  cache.forward(pool, rows, cu_seqlens, kv_lens, first, 0);
  const BatchShape shape{int64_t(kv_lens.size()), cu_seqlens.data(), kv_lens.data()};
  Selected selected;
  PagedSelectArgs args;
  args.q = rows.data();
  args.ldq = cache.width();
  args.heads = kHeads.q;
  args.scale = cache.scale();
  args.estimator = parse_estimator(setting.estimator, 16, setting.block_size, 8192);
  args.threshold = setting.threshold.data();
  args.options = setting.options;
  args.options.block_size = setting.block_size;
  args.mask_heads = setting.mask_heads;
  args.least_share = setting.least_share;
  args.key_means.means = setting.key_means;
  args.row_lse = setting.row_lse;
  args.lse_stride = kHeads.q;
  args.query_blocks = selected.query_blocks = paged_query_blocks(shape);
  args.row_words = selected.row_words = BlockMask::words_of(ceil_div(kTokens, int64_t{64}));
  const int64_t mask_rows = shape.batch * args.mask_heads * args.query_blocks;
  selected.words.assign(size_t(mask_rows * args.row_words), 0xdeadbeefu);
  selected.stats.resize(size_t(mask_rows));
  args.words = selected.words.data();
  args.stats = selected.stats.data();
  const attention::PagedKv kv = cache.kv(first);
  AlignedBuffer workspace(size_t(paged_select_workspace_bytes(args, shape, kv, pool.size())));
  std::fill_n(workspace.data(), workspace.size(), std::byte{0xff});  // NaN
  pool.run([&](Team& team) { paged_select(team, args, shape, kv, workspace.data()); });
  return selected;
}

std::vector<float> rows_of(Cache& cache, size_t b, int64_t begin, int64_t end) {
  return {cache.row(b, begin), cache.row(b, begin) + (end - begin) * cache.width()};
}

Selected select_step(
    ThreadPool& pool, Cache& cache, const Setting& setting, size_t b, int64_t begin, int64_t end) {
  std::vector<float> rows = rows_of(cache, b, begin, end);
  return select_rows(pool, cache, setting, rows, {0, int32_t(end - begin)}, {int32_t(end)}, b);
}

// The same by packed scores and selection, of rows as the cache has rotated them.
std::vector<uint32_t> packed(const std::vector<float>& rows, const Setting& setting, KvType type) {
  const int64_t width = (kHeads.q + 2 * kHeads.kv) * kHeads.dim;
  const int32_t cu[] = {0, int32_t(int64_t(rows.size()) / width)};
  std::vector<uint16_t> halves;
  for (const float x : rows) halves.push_back(float_to_bf16(x));
  const bool bf16 = type == KvType::kBF16;
  ScoreArgs args;
  args.shape.cu_seqlens_q = args.shape.cu_seqlens_k = cu;
  args.shape.batch = 1;
  args.shape.heads = kHeads.q;
  args.shape.kv_heads = kHeads.kv;
  args.shape.head_dim = kHeads.dim;
  args.shape.scale = double(1.0f / std::sqrt(float(kHeads.dim)));
  args.shape.dtype = bf16 ? DType::kBF16 : DType::kF32;
  args.q = {bf16 ? static_cast<const void*>(halves.data()) : rows.data(), width, kHeads.dim};
  args.k = {bf16 ? static_cast<const void*>(halves.data() + kHeads.q * kHeads.dim)
                 : rows.data() + kHeads.q * kHeads.dim,
            width, kHeads.dim};
  args.estimator = parse_estimator(setting.estimator, 16, setting.block_size, 8192);
  args.block_size = setting.block_size;
  args.score_heads = setting.mask_heads;
  args.query_blocks = ceil_div(int64_t(cu[1]), kQueryBlock);
  args.key_blocks = ceil_div(int64_t(cu[1]), setting.block_size);
  std::vector<float> scores(size_t(args.score_heads * args.query_blocks * args.key_blocks));
  args.scores = scores.data();
  const BlockScores block_scores(args);
  AlignedBuffer workspace(size_t(block_scores.workspace_bytes()));
  AlignedBuffer scratch(size_t(block_scores.scratch_bytes()));
  for (int phase = 0; phase < BlockScores::kPhases; ++phase) {
    for (int64_t item = 0; item < block_scores.items(phase); ++item)
      block_scores.run(phase, item, scratch.data(), workspace.data());
  }
  SelectArgs select_args;
  select_args.scores = scores.data();
  select_args.threshold = setting.threshold.data();
  select_args.cu_seqlens_q = select_args.cu_seqlens_k = cu;
  select_args.batch = 1;
  select_args.heads = setting.mask_heads;
  select_args.query_blocks = args.query_blocks;
  select_args.key_blocks = args.key_blocks;
  select_args.options = setting.options;
  select_args.options.block_size = setting.block_size;
  std::vector<uint32_t> words(
      size_t(args.score_heads * args.query_blocks * BlockMask::words_of(args.key_blocks)));
  select_args.words = words.data();
  select(select_args, 0, args.score_heads * args.query_blocks);
  return words;
}

TEST(PagedSelect, IsPackedSelection) {
  ThreadPool pool(2);
  for_each_isa([&] {
    for (const KvType type : {KvType::kF32, KvType::kBF16}) {
      for (const char* estimator : kEstimators) {
        for (const auto& [block_size, mask_heads] :
             std::vector<std::pair<int64_t, int64_t>>{{64, kHeads.kv}, {128, kHeads.q}}) {
          Cache cache(kHeads, type, {kTokens});
          Setting setting;
          setting.estimator = estimator;
          setting.block_size = block_size;
          setting.mask_heads = mask_heads;
          std::vector<float> rows = rows_of(cache, 0, 0, kTokens);
          const Selected found =
              select_rows(pool, cache, setting, rows, {0, int32_t(kTokens)}, {int32_t(kTokens)});
          EXPECT_EQ(found.words, packed(rows, setting, type))
              << estimator << " block " << block_size << " type " << int(type);
        }
      }
    }
  });
}

TEST(PagedSelect, ChunksAtMultiplesOfABlockAreTheWhole) {
  ThreadPool pool(2);
  for (const KvType type : kTypes) {
    for (const char* estimator : kEstimators) {
      for (const bool keep_means : {false, true}) {
        Cache whole(kHeads, type, {kTokens}), pieces(kHeads, type, {kTokens});
        std::vector<float> means(size_t(1000 * kHeads.dim), NAN);
        Setting setting;
        setting.estimator = estimator;
        const Selected expected = select_step(pool, whole, setting, 0, 0, kTokens);
        setting.key_means = keep_means ? means.data() : nullptr;
        for (const auto& [begin, end] :
             std::vector<std::pair<int64_t, int64_t>>{{0, 128}, {128, 384}, {384, kTokens}}) {
          const Selected found = select_step(pool, pieces, setting, 0, begin, end);
          for (int64_t head = 0; head < kHeads.q; ++head) {
            for (int64_t i = 0; i < found.query_blocks; ++i)
              ASSERT_EQ(found.row(head, i), expected.row(head, begin / kQueryBlock + i))
                  << estimator << " type " << int(type) << " from " << begin << " block " << i;
          }
        }
      }
    }
  }
}

// A chunk may begin and end anywhere: a block has the rows that the call brings.
TEST(PagedSelect, ChunksOfAnyLengthKeepTheForcedBlocksAndTheShare) {
  ThreadPool pool(2);
  for (const KvType type : kTypes) {
    Cache cache(kHeads, type, {kTokens});
    int64_t begin = 0;
    for (const int64_t end : {1, 60, 127, 200, 201, 470, 500}) {
      Setting setting;
      setting.estimator = "sampled:16+mean+antidiagonal:16";
      setting.block_size = 64;
      const Selected found = select_step(pool, cache, setting, 0, begin, end);
      ASSERT_EQ(found.query_blocks, ceil_div(end, kQueryBlock) - begin / kQueryBlock);
      for (int64_t row = 0; row < kHeads.q * found.query_blocks; ++row) {
        const int64_t block = begin / kQueryBlock + row % found.query_blocks;
        const int64_t last = std::min(end, (block + 1) * kQueryBlock) - 1;
        const uint32_t* words = found.words.data() + row * found.row_words;
        EXPECT_TRUE(has_block(words, 0));
        EXPECT_TRUE(has_block(words, last / 64));
        for (int64_t j = last / 64 + 1; j < found.row_words * 32; ++j)
          EXPECT_FALSE(has_block(words, j));
        EXPECT_GE(found.stats[size_t(row)].kept_share, 0.6f - 1e-6f);
        EXPECT_EQ(found.stats[size_t(row)].visible, last / 64 + 1);
      }
      begin = end;
    }
  }
}

TEST(PagedSelect, ThresholdsOfTwoAreDenseAndTheGuardRaisesShares) {
  ThreadPool pool(1);
  Cache cache(kHeads, KvType::kBF16, {kTokens});
  Setting setting;
  setting.block_size = 64;
  setting.threshold = {2.0f, 0.0f, 2.0f, 2.5f, 2.0f, 0.0f};
  const Selected found = select_step(pool, cache, setting, 0, 0, kTokens);
  for (int64_t head = 0; head < kHeads.q; ++head) {
    for (int64_t i = 0; i < 4; ++i) {
      const RowStats& stats = found.stats[size_t(head * 4 + i)];
      const int64_t visible = std::min((i + 1) * 2, ceil_div(kTokens, int64_t{64}));
      EXPECT_EQ(stats.visible, visible);
      EXPECT_EQ(stats.kept,
                setting.threshold[size_t(head)] >= 2.0f ? visible : std::min<int64_t>(visible, 3));
    }
  }
  Cache again(kHeads, KvType::kBF16, {kTokens});
  setting.least_share = 0.9f;
  const Selected guarded = select_step(pool, again, setting, 0, 0, kTokens);
  setting.threshold.assign(size_t(kHeads.q), 0.9f);
  Cache third(kHeads, KvType::kBF16, {kTokens});
  const Selected expected = select_step(pool, third, setting, 0, 0, kTokens);
  EXPECT_EQ(guarded.row(1, 3), expected.row(1, 3));
  EXPECT_EQ(guarded.row(5, 2), expected.row(5, 2));
}

TEST(PagedSelect, ABatchIsItsSequencesOnAnyTeam) {
  const std::vector<int64_t> lengths = {300, 64, 500};
  for (const KvType type : kTypes) {
    for (const char* estimator : {kEstimators[1], kEstimators[3]}) {
      Setting setting;
      setting.estimator = estimator;
      ThreadPool one(1);
      Cache alone(kHeads, type, lengths);
      std::vector<Selected> expected;
      for (size_t b = 0; b < lengths.size(); ++b)
        expected.push_back(select_step(one, alone, setting, b, 0, lengths[b]));
      for (const int threads : {1, 3}) {
        ThreadPool pool(threads);
        Cache together(kHeads, type, lengths);
        std::vector<float> rows;
        std::vector<int32_t> cu = {0};
        for (size_t b = 0; b < lengths.size(); ++b) {
          const std::vector<float> own = rows_of(together, b, 0, lengths[b]);
          rows.insert(rows.end(), own.begin(), own.end());
          cu.push_back(cu.back() + int32_t(lengths[b]));
        }
        const Selected found = select_rows(pool, together, setting, rows, cu, {300, 64, 500});
        for (int64_t b = 0; b < 3; ++b) {
          for (int64_t head = 0; head < kHeads.q; ++head) {
            for (int64_t i = 0; i < found.query_blocks; ++i) {
              const bool exists = i < expected[size_t(b)].query_blocks;
              const auto row = found.row(b * kHeads.q + head, i);
              EXPECT_EQ(row, exists ? expected[size_t(b)].row(head, i)
                                    : std::vector<uint32_t>(row.size(), 0u));
            }
          }
        }
      }
    }
  }
}

// What attention under the mask misses is what the guard says.
TEST(PagedSelect, TheMissingMassOfExactRows) {
  ThreadPool pool(2);
  Cache dense(kHeads, KvType::kF32, {kTokens}), sparse(kHeads, KvType::kF32, {kTokens});
  Setting setting;
  std::vector<float> lse(size_t(kTokens * kHeads.q), NAN);
  setting.row_lse = lse.data();
  std::vector<float> rows = rows_of(dense, 0, 0, kTokens);
  const Selected found =
      select_rows(pool, dense, setting, rows, {0, int32_t(kTokens)}, {int32_t(kTokens)});
  const std::vector<float> all = dense.lse();
  attention::PagedMask mask;
  mask.blocks = {found.words.data(), setting.block_size, kHeads.q, found.query_blocks,
                 found.row_words};
  sparse.use_mask(&mask);
  sparse.step(pool, 0, 0, kTokens, 0);
  for (int64_t head = 0; head < kHeads.q; ++head) {
    for (int64_t i = 0; i < found.query_blocks; ++i) {
      double kept = 0.0;
      int64_t count = 0;
      for (int64_t t = i * kQueryBlock; t < std::min(kTokens, (i + 1) * kQueryBlock); ++t) {
        const size_t at = size_t(t * kHeads.q + head);
        if (std::isnan(lse[at])) continue;
        EXPECT_NEAR(lse[at], all[at], 4e-5f);
        kept += std::exp(double(sparse.lse()[at]) - double(lse[at]));
        ++count;
      }
      EXPECT_EQ(count, ceil_div(std::min(kTokens - i * kQueryBlock, kQueryBlock), int64_t{16}));
      EXPECT_NEAR(kept / double(count),
                  found.stats[size_t(head * found.query_blocks + i)].kept_share, 1e-4);
    }
  }
}

// One key that one query looks for, far back, must be found in every kind of page.
TEST(PagedSelect, FindsAPlantedKey) {
  ThreadPool pool(1);
  for_each_isa([&] {
    for (const KvType type : kTypes) {
      Cache cache(kHeads, type, {kTokens});
      // RoPE leaves the angle of token 0; the planted pair stands at the same angle
      std::vector<float> rows = rows_of(cache, 0, 0, kTokens);
      float* key = rows.data() + 200 * cache.width() + kHeads.q * kHeads.dim;
      float* query = rows.data() + 450 * cache.width();
      std::fill_n(key, kHeads.dim, 0.0f);
      std::fill_n(query, kHeads.dim, 0.0f);
      key[kHeads.dim / 2 - 1] = 40.0f;  // the slowest pair of RoPE
      query[kHeads.dim / 2 - 1] = 40.0f;
      Setting setting;
      setting.estimator = "outlier";
      setting.threshold.assign(size_t(kHeads.q), 0.5f);
      setting.block_size = 64;
      const Selected found =
          select_rows(pool, cache, setting, rows, {0, int32_t(kTokens)}, {int32_t(kTokens)});
      EXPECT_TRUE(has_block(found.row(0, 3).data(), 200 / 64)) << int(type);
      EXPECT_EQ(found.stats[3].kept, 4) << int(type);  // the sink, two on the diagonal and this
    }
  });
}

}  // namespace
}  // namespace longspur::kernels::xattn
