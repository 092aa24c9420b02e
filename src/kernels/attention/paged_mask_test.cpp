// Attention over the paged cache under a mask of blocks: laws, and the loops in double of ref.cpp;
// tolerances are argued in docs/numerics.md, section attention.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <tuple>
#include <vector>

#include "kernels/attention/paged_cases.h"

namespace longspur::kernels::attention {
namespace {

// Query rows [begin, end) of each sequence; blocks of query blocks from the first row's on.
class Mask {
 public:
  struct Rows {
    int64_t begin, end;
  };
  Mask(const std::vector<Rows>& sequences,
       int64_t heads,
       int64_t block_size,
       float density,
       uint64_t seed = 1) {
    int64_t longest = 0;
    BlockMask& blocks = mask_.blocks;
    for (const Rows& rows : sequences) {
      longest = std::max(longest, rows.end);
      blocks.query_blocks = std::max(blocks.query_blocks,
                                     (rows.end - 1) / kQueryBlock - rows.begin / kQueryBlock + 1);
    }
    blocks.block_size = block_size;
    blocks.heads = heads;
    blocks.row_words = BlockMask::words_of(ceil_div(longest, block_size));
    words_.resize(sequences.size() * size_t(heads * blocks.query_blocks * blocks.row_words));
    for (size_t i = 0; i < words_.size() * 32; ++i) {
      if (uniform01(philox4x32(seed, 7, i)[0]) < density) words_[i / 32] |= uint32_t{1} << (i % 32);
    }
    blocks.words = words_.data();
  }
  Mask(const Mask&) = delete;

  uint32_t* row(int64_t b, int64_t head, int64_t i) {
    return words_.data() + (mask_.blocks.row(b, head, i) - words_.data());
  }
  void correct_means() { mask_.mean_correction = true; }
  void set_use(std::vector<uint8_t> use) {
    use_ = std::move(use);
    mask_.use = use_.data();
  }
  const PagedMask* operator&() const { return &mask_; }

 private:
  PagedMask mask_;
  std::vector<uint32_t> words_;
  std::vector<uint8_t> use_;
};

void expect_close_lse(const std::vector<float>& found,
                      const std::vector<float>& expected,
                      KvType type) {
  ASSERT_EQ(found.size(), expected.size());
  for (size_t i = 0; i < found.size(); ++i) {
    if (std::isinf(expected[i]))
      ASSERT_EQ(found[i], expected[i]) << i;
    else
      ASSERT_NEAR(found[i], expected[i], type == KvType::kF32 ? 1e-5 : 4e-3) << i;
  }
}

// A chunk of queries behind a prefix that ends anywhere in a block.
TEST(PagedMaskTest, AllBlocksListedIsDenseBitForBit) {
  ThreadPool pool(2);
  for_each_isa([&] {
    for (const Heads heads : {Heads{9, 3, 64}, {7, 1, 80}, {50, 1, 16}}) {
      for (const KvType type : kTypes) {
        Cache cache(heads, type, {260});
        cache.step(pool, 0, 0, 69, 0);
        const std::vector<float> dense = cache.step(pool, 0, 69, 260, 0);
        const std::vector<float> dense_lse = cache.lse();
        for (const int64_t mask_heads : {heads.q, heads.kv}) {
          SCOPED_TRACE(concat(heads.q, "/", heads.kv, "/", heads.dim, " type ", int(type), " mask ",
                              mask_heads));
          const Mask all({{69, 260}}, mask_heads, mask_heads == heads.q ? 64 : 128, 1.0f);
          Cache masked(heads, type, {260});
          masked.step(pool, 0, 0, 69, 0);
          masked.use_mask(&all);
          EXPECT_EQ(masked.step(pool, 0, 69, 260, 0), dense);
          EXPECT_EQ(masked.lse(), dense_lse);
        }
      }
    }
  });
}

TEST(PagedMaskTest, RandomMasksMatchTheReference) {
  ThreadPool pool(2);
  for_each_isa([&] {
    for (const Heads heads : {Heads{9, 3, 64}, {2, 2, 128}, {4, 1, 18}}) {
      for (const KvType type : kTypes) {
        if (!accepts(type, heads)) continue;
        for (const auto& [begin, mask_heads, block_size, density, window] :
             {std::tuple(0, heads.q, 128, 0.5f, 0),
              {200, heads.kv, 64, 0.3f, 0},
              {256, int64_t{1}, 128, 0.4f, 0},
              {70, heads.q, 64, 0.5f, 150}}) {
          SCOPED_TRACE(concat(heads.q, "/", heads.kv, "/", heads.dim, " type ", int(type), " from ",
                              begin, " mask ", mask_heads, " window ", window));
          const int64_t end = begin + 139;
          const Mask mask({{begin, end}}, mask_heads, block_size, density);
          Cache cache(heads, type, {end});
          if (begin > 0) cache.step(pool, 0, 0, begin, 0);
          cache.use_mask(&mask);
          const std::vector<float> out = cache.step(pool, 0, begin, end, window);
          const std::vector<float> lse = cache.lse();
          expect_close(out, cache.reference(0, begin, end, window), tolerance(type));
          expect_close_lse(lse, cache.lse(), type);
        }
      }
    }
  });
}

TEST(PagedMaskTest, RowsWithoutListedKeysAreZero) {
  ThreadPool pool(2);
  for_each_isa([&] {
    for (const KvType type : kTypes) {
      Mask mask({{0, 200}}, 6, 64, 0.0f);
      mask.row(0, 2, 1)[0] = 8;  // head 2, rows 128 .. 199: keys 192 ..
      Cache cache({6, 2, 32}, type, {200});
      cache.use_mask(&mask);
      const std::vector<float> out = cache.step(pool, 0, 0, 200, 0);
      for (size_t row = 0; row < 200 * 6; ++row) {
        const bool sees = row % 6 == 2 && row / 6 >= 192;
        ASSERT_EQ(std::isfinite(cache.lse()[row]), sees) << row;
        for (size_t i = 0; i < 32; ++i) ASSERT_EQ(out[row * 32 + i] != 0.0f, sees) << row;
      }
    }
  });
}

TEST(PagedMaskTest, OtherPagesAreNeverRead) {
  ThreadPool pool(2);
  for_each_isa([&] {
    for (const KvType type : kTypes) {
      std::vector<float> outs[2];
      for (const bool poisoned : {false, true}) {
        Cache cache({4, 2, 64}, type, {500});
        cache.step(pool, 0, 0, 300, 0);
        Mask mask({{300, 500}}, 4, 128, 1.0f);
        for (int64_t head = 0; head < 4; ++head)
          for (int64_t i = 0; i < 2; ++i) mask.row(0, head, i)[0] &= ~2u;  // keys 128 .. 255
        const PagedKv kv = cache.kv();
        const size_t bytes = size_t(page_bytes(type, 64));
        for (int64_t g = 0; g < 2 && poisoned; ++g) {
          for (const int64_t page : {2, 3}) {
            std::fill_n(kv.pool + size_t(kv.block_table[g * kv.max_blocks + page]) * bytes, bytes,
                        std::byte{0xff});
          }
        }
        cache.use_mask(&mask);
        outs[poisoned] = cache.step(pool, 0, 300, 500, 0);
      }
      EXPECT_EQ(outs[0], outs[1]) << int(type);
    }
  });
}

// Sequences under the mask, without it and with few queries, in one batch and alone.
TEST(PagedMaskTest, MaskedAndDenseSequencesMixInABatch) {
  const std::vector<int64_t> lengths = {190, 140, kFewQueries - 1, 64};
  const Heads heads{6, 2, 32};
  ThreadPool one(1);
  for_each_isa([&] {
    for (const KvType type : kTypes) {
      for (const int64_t mask_heads : {heads.q, heads.kv}) {
        std::vector<Mask::Rows> rows;
        for (const int64_t length : lengths) rows.push_back({0, length});
        Mask mask(rows, mask_heads, 128, 0.5f);
        mask.set_use({1, 0, 1, 1});
        if (mask_heads == heads.q) mask.correct_means();
        std::vector<float> expected;
        Cache alone(heads, type, lengths);
        for (size_t b = 0; b < lengths.size(); ++b) {
          PagedMask own = *(&mask);
          own.use = nullptr;
          own.blocks.words = mask.row(int64_t(b), 0, 0);
          alone.use_mask(b == 1 || b == 2 ? nullptr : &own);
          const std::vector<float> out = alone.step(one, b, 0, lengths[b], 0);
          expected.insert(expected.end(), out.begin(), out.end());
        }
        for (const int threads : {1, 3}) {
          ThreadPool pool(threads);
          Cache together(heads, type, lengths);
          together.use_mask(&mask);
          std::vector<float> all;
          std::vector<int32_t> cu = {0}, kv_lens;
          for (size_t b = 0; b < lengths.size(); ++b) {
            all.insert(all.end(), together.sequence(b).begin(), together.sequence(b).end());
            cu.push_back(cu.back() + int32_t(lengths[b]));
            kv_lens.push_back(int32_t(lengths[b]));
          }
          EXPECT_EQ(together.forward(pool, all, cu, kv_lens, 0, 0), expected) << threads;
        }
      }
    }
  });
}

TEST(PagedMaskTest, MeansOfSkippedBlocksMatchTheReference) {
  ThreadPool pool(2);
  for_each_isa([&] {
    for (const KvType type : kTypes) {
      for (const auto& [begin, end, mask_heads, block_size, window] :
           {std::tuple(0, 397, 4, 128, 0), {450, 520, 2, 64, 0}, {300, 430, 4, 64, 310}}) {
        SCOPED_TRACE(concat("type ", int(type), " from ", begin, " window ", window));
        Mask mask({{begin, end}}, mask_heads, block_size, 0.3f);
        mask.correct_means();
        Cache cache({4, 2, 48}, type, {end});
        if (begin > 0) cache.step(pool, 0, 0, begin, 0);
        cache.use_mask(&mask);
        const std::vector<float> out = cache.step(pool, 0, begin, end, window);
        const std::vector<float> lse = cache.lse();
        expect_close(out, cache.reference(0, begin, end, window), tolerance(type));
        expect_close_lse(lse, cache.lse(), type);
      }
    }
  });
}

// Queries of zero weigh all keys alike, so a block is worth exactly its mean. More than 64 blocks:
// means on two pages.
TEST(PagedMaskTest, MeansAreExactWhereScoresAreEqual) {
  ThreadPool pool(3);
  constexpr int64_t kTokens = 4400, kBegin = 4300;
  for_each_isa([&] {
    for (const KvType type : {KvType::kF32, KvType::kBF16}) {
      Cache cache({2, 1, 16}, type, {kTokens});
      for (int64_t t = 0; t < kTokens; ++t) std::fill_n(cache.row(0, t), 2 * 16, 0.0f);
      cache.step(pool, 0, 0, kBegin, 1);
      const std::vector<float> dense = cache.step(pool, 0, kBegin, kTokens, 0);
      const std::vector<float> dense_lse = cache.lse();
      Mask mask({{kBegin, kTokens}}, 1, 64, 0.1f);
      for (int64_t i = 0; i < 2; ++i)  // positions 4224 .. 4351, 4352 .. 4399: blocks 66 to 68
        mask.row(0, 0, i)[2] |= 0x1cu;
      mask.correct_means();
      cache.use_mask(&mask);
      const std::vector<float> out = cache.step(pool, 0, kBegin, kTokens, 0);
      expect_close(out, dense, type == KvType::kF32 ? 1e-6 : 1e-3);
      for (size_t i = 0; i < dense_lse.size(); ++i) ASSERT_NEAR(cache.lse()[i], dense_lse[i], 1e-5);
    }
  });
}

TEST(PagedAttention, LogSumExpsMatchTheReference) {
  ThreadPool pool(2);
  for_each_isa([&] {
    for (const KvType type : kTypes) {
      Cache cache({4, 2, 32}, type, {620});
      int64_t prefix = 0;
      for (const int64_t begin : {500, 590, 619}) {  // the last two are split over their keys
        cache.step(pool, 0, prefix, begin, 0);
        prefix = begin;
        cache.step(pool, 0, begin, 620, 0);
        const std::vector<float> lse = cache.lse();
        cache.reference(0, begin, 620, 0);
        expect_close_lse(lse, cache.lse(), type);
      }
    }
  });
}

}  // namespace
}  // namespace longspur::kernels::attention
