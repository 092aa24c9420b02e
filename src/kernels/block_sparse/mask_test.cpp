// Masks of blocks: laws of packing, of what a query block sees, and of the modes of heads.
#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/rng.h"
#include "kernels/block_sparse/api.h"

namespace longspur::kernels::block_sparse {
namespace {

TEST(BlockMask, PackingRoundTripsAndClearsWhatIsBeyond) {
  for (const int64_t key_blocks : {1, 31, 32, 33, 127, 128, 129, 300}) {
    constexpr int64_t kRows = 5;
    std::vector<uint8_t> blocks(size_t(kRows * key_blocks)), back(blocks.size(), 7);
    for (size_t i = 0; i < blocks.size(); ++i)
      blocks[i] = uniform01(philox4x32(1, 0, i)[0]) < 0.4f ? uint8_t(1 + i % 255) : 0;
    const int64_t row_words = BlockMask::words_of(key_blocks);
    EXPECT_EQ(row_words % 4, 0);
    std::vector<uint32_t> words(size_t(kRows * row_words), ~0u);
    pack_mask(blocks.data(), kRows, key_blocks, words.data());
    unpack_mask(words.data(), kRows, key_blocks, back.data());
    for (size_t i = 0; i < blocks.size(); ++i) ASSERT_EQ(back[i], blocks[i] != 0) << i;
    for (int64_t r = 0; r < kRows; ++r) {
      const uint32_t* row = words.data() + r * row_words;
      for (int64_t j = key_blocks; j < row_words * 32; ++j) ASSERT_FALSE(has_block(row, j));
      for (int64_t end = 0; end <= key_blocks; ++end) {
        const auto* first = back.data() + r * key_blocks;
        ASSERT_EQ(count_blocks(row, end), std::count(first, first + end, 1)) << end;
      }
    }
  }
  pack_mask(nullptr, 3, 0, nullptr);  // no keys: nothing to write
}

// Against the definition, query by query.
TEST(BlockMask, VisibleBlocksAreThoseOfTheRows) {
  for (const bool causal : {true, false}) {
    for (const int64_t block : {64, 128}) {
      for (const int64_t n : {1, 64, 127, 128, 129, 300}) {
        for (const int64_t m : {0, 1, 63, 64, 65, 128, 203, 300, 511}) {
          for (int64_t i = 0; i * kQueryBlock < n; ++i) {
            int64_t most = 0, least = m;  // keys that some row, that every row sees
            for (int64_t q = i * kQueryBlock; q < std::min(n, (i + 1) * kQueryBlock); ++q) {
              const int64_t sees = causal ? std::clamp<int64_t>(q + 1 + m - n, 0, m) : m;
              most = std::max(most, sees);
              least = std::min(least, sees);
            }
            const VisibleBlocks visible = visible_blocks(i, n, m, block, causal);
            ASSERT_EQ(visible.end, (most + block - 1) / block) << n << " " << m << " " << i;
            ASSERT_EQ(visible.diagonal, least / block) << n << " " << m << " " << i;
          }
        }
      }
    }
  }
}

struct Sequences {
  std::vector<int32_t> cu_q, cu_k;
  attention::VarlenShape shape(bool causal) const {
    attention::VarlenShape shape;
    shape.cu_seqlens_q = cu_q.data();
    shape.cu_seqlens_k = cu_k.data();
    shape.batch = int64_t(cu_q.size()) - 1;
    shape.heads = 4;
    shape.kv_heads = 2;
    shape.head_dim = 8;
    shape.causal = causal;
    return shape;
  }
};

std::string listed(const BlockMask& mask, int64_t b, int64_t h, int64_t i) {
  std::string blocks;
  for (int64_t j = 0; j < 32; ++j)
    if (has_block(mask.row(b, h, i), j)) blocks += concat(j, " ");
  return blocks;
}

TEST(BlockMask, ModesOfHeadsBecomeBits) {
  const Sequences sequences{{0, 400, 500}, {0, 500, 600}};
  std::vector<uint32_t> words(2 * 4 * 4 * 4, 0x80000005u);
  const BlockMask mask{words.data(), 128, 4, 4, 4};
  const HeadPlan plans[] = {
      {HeadMode::kDense}, {HeadMode::kStreaming, 1, 2}, {HeadMode::kList}, {HeadMode::kStreaming}};
  apply_head_plans(plans, sequences.shape(true), mask, words.data());
  // Row 0 of sequence 0 stands at keys 100 to 227.
  EXPECT_EQ(listed(mask, 0, 0, 0), "0 1 ");
  EXPECT_EQ(listed(mask, 0, 0, 3), "0 1 2 3 ");
  EXPECT_EQ(listed(mask, 0, 1, 0), "0 1 ");
  EXPECT_EQ(listed(mask, 0, 1, 2), "0 2 3 ");
  EXPECT_EQ(listed(mask, 0, 2, 0), "0 2 31 ");
  EXPECT_EQ(listed(mask, 0, 3, 3), "");
  EXPECT_EQ(listed(mask, 1, 1, 0), "0 ");
  EXPECT_EQ(listed(mask, 1, 0, 1), "");  // beyond the sequence
  apply_head_plans(plans, sequences.shape(false), mask, words.data());
  EXPECT_EQ(listed(mask, 0, 0, 0), "0 1 2 3 ");
  EXPECT_EQ(listed(mask, 0, 1, 0), "0 2 3 ");
}

void expect_refused(const BlockMask& mask, const std::string& text) {
  const Sequences sequences{{0, 300}, {0, 5000}};
  try {
    check_mask(mask, sequences.shape(true));
    ADD_FAILURE() << "accepted, expected: " << text;
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find(text), std::string::npos) << error.what();
  }
}

TEST(BlockMask, AMaskOfAnotherShapeIsNamed) {
  const uint32_t word = 0;
  check_mask({&word, 128, 4, 3, 4}, Sequences{{0, 300}, {0, 5000}}.shape(true));
  expect_refused({&word, 96, 4, 3, 4}, "block_size: found 96, expected 64 or 128");
  expect_refused({&word, 128, 3, 3, 4}, "heads: found 3, expected 4, 2 or 1");
  expect_refused({&word, 128, 4, 2, 4}, "query blocks: found 2, expected at least 3");
  expect_refused({&word, 128, 4, 3, 0}, "words a row: found 0, expected at least 4");
  expect_refused({nullptr, 128, 4, 3, 4}, "words: found none, expected 12 rows");
  check_mask({nullptr, 64, 4, 0, 4}, Sequences{{0, 0}, {0, 50}}.shape(true));
  const HeadPlan bad{HeadMode::kStreaming, -1, 0};
  EXPECT_THROW(apply_head_plans(&bad, Sequences{{0, 3}, {0, 3}}.shape(true),
                                {nullptr, 128, 1, 1, 4}, nullptr),
               Error);
}

}  // namespace
}  // namespace longspur::kernels::block_sparse
