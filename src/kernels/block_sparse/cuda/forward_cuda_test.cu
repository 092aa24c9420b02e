// Forward on a device against sums in double over the same inputs, and laws: results do not depend
// on what else is in the batch, on the mask's form or on the kernel, and runs repeat bit for bit.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <random>
#include <type_traits>
#include <vector>

#include "kernels/block_sparse/cuda/block_sparse_cuda.h"
#include "kernels/block_sparse/cuda/forward_test_util.cuh"
#include "kernels/common/cuda/device_test.cuh"

namespace longspur::kernels::block_sparse::cuda {
namespace {

// P and out are rounded to the type: two half units in the last place, root mean square.
template <class T>
double out_bound() {
  return sizeof(T) == 4 ? 1e-5 : std::is_same_v<T, bf16> ? 4e-3 : 6e-4;
}
constexpr double kLseBound = 2e-5;

template <class T>
void check(const Case& c, bool expect_fast) {
  const Problem<T> problem(c);
  bool fast = false;
  const auto result = problem.run(&fast);
  EXPECT_EQ(fast, expect_fast) << name_of(c);
  problem.check(result, out_bound<T>(), kLseBound);
}

std::vector<Case> shapes() {
  return {
      {{1}, {1}},
      {{128}, {128}},
      {{127}, {127}},
      {{129}, {129}},
      {{257}, {257}, 4, 2},
      {{384}, {384}, 4, 4},
      {{640}, {640}, 4, 1},
      {{100}, {300}},
      {{1}, {513}},
      {{300}, {100}},  // rows without keys
      {{300}, {0}},
      {{130}, {2000}},
      {{13, 257, 0, 1, 128, 300}, {13, 257, 40, 0, 300, 128}, 3, 3},
      {{1100}, {1100}, 2, 2},
  };
}

TEST(BlockSparseForwardCuda, MatchesDouble) {
  LONGSPUR_REQUIRE_DEVICE();
  unsigned seed = 1;
  for (Case c : shapes()) {
    c.keys.resize(c.queries.size());
    for (const int dim : {128, 64}) {
      for (const bool causal : {true, false}) {
        for (const int block_size : {128, 64}) {
          for (const Blocks blocks : {Blocks::kNull, Blocks::kRandom, Blocks::kFull}) {
            if (blocks == Blocks::kNull && block_size == 64) continue;
            c.dim = dim;
            c.causal = causal;
            c.block_size = block_size;
            c.blocks = blocks;
            c.mask_heads = seed % 3 == 0 ? 1 : seed % 3 == 1 ? c.heads : c.kv_heads;
            c.pad = int(seed % 2) * 8;
            c.heads_first = seed % 5 == 0;
            c.paged = seed % 4 == 3;
            c.seed = ++seed;
            const bool some = starts(c.keys).back() > 0;
            if (seed % 2 == 0)
              check<bf16>(c, some);
            else
              check<__half>(c, some);
          }
        }
      }
    }
  }
}

TEST(BlockSparseForwardCuda, EmptyAndDiagonalRows) {
  LONGSPUR_REQUIRE_DEVICE();
  for (const Blocks blocks : {Blocks::kNone, Blocks::kDiagonal, Blocks::kSomeRowsEmpty}) {
    for (const int block_size : {64, 128}) {
      for (const bool causal : {true, false}) {
        Case c{{700, 130, 5}, {701, 130, 400}, 4, 2, 128, causal, blocks, block_size, 4};
        check<bf16>(c, true);
        c.dim = 64;
        c.paged = true;
        check<__half>(c, true);
        c.paged = false;
        c.dim = 80;
        check<float>(c, false);
      }
    }
  }
}

// Scores that grow from tile to tile, beyond what fp32 holds without the largest score.
TEST(BlockSparseForwardCuda, PeakedScores) {
  LONGSPUR_REQUIRE_DEVICE();
  for (const float q_scale : {4.0f, 8.0f, 30.0f, 100.0f, 1000.0f}) {
    for (const Blocks blocks : {Blocks::kNull, Blocks::kRandom}) {
      for (const int dim : {64, 128}) {
        Case c{{900, 200}, {900, 1500}, 4, 2, dim, true, blocks, 64, 4, q_scale};
        check<bf16>(c, true);
        check<__half>(c, true);
        c.causal = false;
        check<bf16>(c, true);
      }
    }
  }
}

TEST(BlockSparseForwardCuda, ManySequencesAndNaNsOfOthers) {
  LONGSPUR_REQUIRE_DEVICE();
  std::mt19937 generator(5);
  Case c;
  for (int b = 0; b < 75; ++b) {
    c.queries.push_back(int(generator() % 150));
    c.keys.push_back(b % 7 == 0 ? int(generator() % 300) : c.queries.back());
  }
  c.queries[31] = c.keys[31] = 100;
  for (const int nan_sequence : {-1, 31}) {
    for (const bool paged : {false, true}) {
      c.nan_sequence = nan_sequence;
      c.paged = paged;
      c.block_size = paged ? 64 : 128;
      check<bf16>(c, true);
      c.dim = 64;
      check<bf16>(c, true);
      c.dim = 128;
    }
  }
}

TEST(BlockSparseForwardCuda, OtherTypesSizesAndStrides) {
  LONGSPUR_REQUIRE_DEVICE();
  for (Case c : shapes()) {
    c.keys.resize(c.queries.size());
    c.mask_heads = c.heads;
    c.dim = 128;
    check<float>(c, false);
    c.dim = 96;
    check<bf16>(c, false);
    c.dim = 256;
    c.paged = true;
    check<float>(c, false);
    c.paged = false;
    c.dim = 33;
    c.block_size = 64;
    check<__half>(c, false);
    c.dim = 64;
    c.pad = 3;  // rows at odd places
    check<bf16>(c, false);
  }
}

TEST(BlockSparseForwardCuda, RunsRepeatBitForBit) {
  LONGSPUR_REQUIRE_DEVICE();
  for (const float q_scale : {1.0f, 100.0f}) {
    const Problem<bf16> problem(
        {{3000, 1000}, {3000, 1200}, 8, 2, 128, true, Blocks::kRandom, 64, 8, q_scale});
    const auto first = problem.run();
    for (int i = 0; i < 5; ++i) {
      const auto again = problem.run();
      EXPECT_EQ(std::memcmp(first.out.data(), again.out.data(), first.out.size() * 2), 0);
      EXPECT_EQ(std::memcmp(first.lse.data(), again.lse.data(), first.lse.size() * 4), 0);
    }
  }
}

// A mask of full blocks, of either size, is no mask.
TEST(BlockSparseForwardCuda, FullMasksAreDense) {
  LONGSPUR_REQUIRE_DEVICE();
  Case c{{900, 65}, {1000, 65}, 4, 2, 128, true, Blocks::kNull};
  const auto dense = Problem<bf16>(c).run();
  c.blocks = Blocks::kFull;
  for (const int block_size : {64, 128}) {
    c.block_size = block_size;
    const auto full = Problem<bf16>(c).run();
    double error = 0, norm = 0;
    for (size_t i = 0; i < full.out.size(); ++i) {
      const double x = double(as_float(full.out[i])), y = double(as_float(dense.out[i]));
      ASSERT_EQ(std::isnan(x), std::isnan(y));  // outside of the rows
      if (std::isnan(x)) continue;
      error += (x - y) * (x - y);
      norm += y * y;
    }
    EXPECT_LE(std::sqrt(error / norm), block_size == 128 ? 0.0 : 2e-3) << block_size;
  }
}

TEST(BlockSparseForwardCuda, NoQueriesAndBadArguments) {
  LONGSPUR_REQUIRE_DEVICE();
  ForwardArgs args;
  args.shape.batch = 1;
  args.shape.heads = args.shape.kv_heads = 1;
  args.shape.head_dim = 64;
  EXPECT_EQ(forward(args, nullptr), nullptr);
  args.shape.total_q = 1;
  args.shape.head_dim = 257;
  EXPECT_NE(forward(args, nullptr), nullptr);
  const uint32_t word = 0;
  args.shape.head_dim = 64;
  args.mask.words = &word;
  args.mask.block_size = 96;
  EXPECT_NE(forward(args, nullptr), nullptr);
}

TEST(BlockMaskCuda, PackAndUnpack) {
  LONGSPUR_REQUIRE_DEVICE();
  std::mt19937 generator(3);
  for (const int64_t rows : {1, 7, 300}) {
    for (const int64_t key_blocks : {1, 31, 32, 33, 129, 1000}) {
      std::vector<uint8_t> blocks(size_t(rows * key_blocks));
      for (uint8_t& b : blocks) b = uint8_t(generator() % 3 == 0 ? generator() % 255 + 1 : 0);
      const int64_t row_words = BlockMask::words_of(key_blocks);
      const DeviceArray<uint8_t> from(blocks);
      const DeviceArray<uint32_t> words(std::vector<uint32_t>(size_t(rows * row_words), ~0u));
      ASSERT_EQ(pack_mask(from.get(), rows, key_blocks, words.get(), nullptr), nullptr);
      const auto packed = words.download();
      for (int64_t row = 0; row < rows; ++row) {
        for (int64_t j = 0; j < row_words * 32; ++j) {
          const bool expected = j < key_blocks && blocks[size_t(row * key_blocks + j)] != 0;
          ASSERT_EQ(has_block(packed.data() + row * row_words, j), expected);
        }
      }
      const DeviceArray<uint8_t> back(std::vector<uint8_t>(blocks.size(), 9));
      ASSERT_EQ(unpack_mask(words.get(), rows, key_blocks, back.get(), nullptr), nullptr);
      const auto found = back.download();
      for (size_t i = 0; i < found.size(); ++i) ASSERT_EQ(found[i], blocks[i] != 0);
    }
  }
}

}  // namespace
}  // namespace longspur::kernels::block_sparse::cuda
