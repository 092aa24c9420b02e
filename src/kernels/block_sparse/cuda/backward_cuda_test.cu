// Gradients on a device against the reference in double, within three times the error that 16-bit
// probabilities and gradients of scores cost anyway; and laws: repeated deterministic runs are
// equal bit for bit, other sequences' NaNs stay with them, a full mask is dense attention.
#include <gtest/gtest.h>

#include "kernels/block_sparse/cuda/backward_test_util.cuh"

namespace longspur::kernels::block_sparse::cuda {
namespace {

double relative(const std::vector<double>& found, const std::vector<double>& expected) {
  double error = 0, norm = 1e-30;
  for (size_t i = 0; i < expected.size(); ++i) {
    error += (found[i] - expected[i]) * (found[i] - expected[i]);
    norm += expected[i] * expected[i];
  }
  return std::sqrt(error / norm);
}

// NaN fails: every element must have been written.
template <class T>
void check(const Case& c, bool expect_fast = true) {
  const Problem<T> problem(c);
  bool fast = false;
  const Gradients found = problem.run(&fast);
  EXPECT_EQ(fast, expect_fast) << name_of(c);
  const Gradients expected = problem.expected(), naive = problem.naive();
  for (int i = 0; i < 3; ++i) {
    const auto sound = [&](const Gradients& g) { return problem.sound(g.x[i], i == 0); };
    const double bound = sizeof(T) == 4 ? 1e-5 : 3 * relative(sound(naive), sound(expected)) + 1e-6;
    EXPECT_LE(relative(sound(found), sound(expected)), bound)
        << "gradient " << i << " of " << name_of(c);
  }
}

std::vector<Case> shapes() {
  return {
      {{1}, {1}},           {{128}, {128}},
      {{113}, {203}},       {{257}, {257}, 4, 2},
      {{1}, {300}, 3, 3},   {{300}, {129}},  // rows without keys
      {{300}, {300}, 4, 1}, {{13, 150, 0, 1, 128, 70}, {13, 150, 40, 0, 200, 30}, 3, 3},
  };
}

TEST(BlockSparseBackwardCuda, MatchesDouble) {
  LONGSPUR_REQUIRE_DEVICE();
  unsigned seed = 1;
  for (Case c : shapes()) {
    for (const int dim : {128, 64}) {
      for (const bool causal : {true, false}) {
        for (const Picks blocks : {Picks::kDense, Picks::kRandom, Picks::kFull}) {
          c.seed = ++seed;
          c.dim = dim;
          c.causal = causal;
          c.blocks = blocks;
          c.block_size = seed % 2 == 0 ? 64 : 128;
          c.mask_heads = seed % 3 == 0 ? 1 : seed % 3 == 1 ? c.heads : c.kv_heads;
          c.pad = int(seed % 5 / 3) * 8;
          c.heads_first = seed % 7 < 3;
          c.grad_lse = seed % 4 != 0;
          c.deterministic = seed % 5 == 0;
          if (seed % 3 == 0)
            check<__half>(c);
          else
            check<bf16>(c);
        }
      }
    }
  }
}

TEST(BlockSparseBackwardCuda, EmptyRowsColumnsAndLongColumns) {
  LONGSPUR_REQUIRE_DEVICE();
  unsigned seed = 100;
  for (const Picks blocks :
       {Picks::kNone, Picks::kDiagonal, Picks::kFirst, Picks::kEmptyRows, Picks::kEmptyColumns}) {
    for (const int block_size : {64, 128}) {
      for (const bool causal : {true, false}) {
        Case c{{270, 130, 5}, {271, 130, 200}, 4, 2, 128, causal, blocks, block_size, 4};
        c.seed = ++seed;
        check<bf16>(c);
        c.dim = 64;
        c.deterministic = true;
        c.mask_heads = 2;
        check<__half>(c);
      }
    }
  }
}

// Long enough for columns to be cut: more than kLeastPart blocks in one.
TEST(BlockSparseBackwardCuda, CutColumns) {
  LONGSPUR_REQUIRE_DEVICE();
  for (const int dim : {64, 128}) {
    check<bf16>({{400}, {400}, 6, 1, dim, true, Picks::kDense});
    check<__half>({{400}, {400}, 6, 1, dim, true, Picks::kFirst, 64, 6});
    check<bf16>({{390, 20}, {300, 400}, 6, 1, dim, false, Picks::kRandom, 128, 6});
  }
}

TEST(BlockSparseBackwardCuda, OtherTypesAndSizes) {
  LONGSPUR_REQUIRE_DEVICE();
  for (const Picks blocks : {Picks::kDense, Picks::kRandom, Picks::kEmptyRows}) {
    for (const bool causal : {true, false}) {
      Case c{{70, 0, 150}, {130, 7, 140}, 4, 2, 128, causal, blocks, 64, 4};
      check<float>(c, false);
      c.dim = 80;
      check<bf16>(c, false);
      c.dim = 256;
      check<__half>(c, false);
      c.dim = 33;
      check<float>(c, false);
      c.dim = 64;
      c.pad = 3;  // rows that no vector load takes
      check<bf16>(c, false);
    }
  }
  check<bf16>({{0}, {5}}, false);
  check<bf16>({{5}, {0}}, false);
}

TEST(BlockSparseBackwardCuda, NaNsStayInTheirSequence) {
  LONGSPUR_REQUIRE_DEVICE();
  for (const int dim : {64, 128}) {
    for (const bool causal : {true, false}) {
      Case c{{70, 90, 133}, {100, 90, 150}, 2, 1, dim, causal, Picks::kDense};
      c.spoilt = 1;
      check<bf16>(c);
    }
  }
}

TEST(BlockSparseBackwardCuda, DeterministicRunsAreEqual) {
  LONGSPUR_REQUIRE_DEVICE();
  for (const int dim : {64, 128}) {
    for (const Picks blocks : {Picks::kDense, Picks::kRandom}) {
      for (const int block_size : {64, 128}) {
        Case c{{1500, 300}, {1500, 400}, 4, 2, dim, true, blocks, block_size, 4};
        c.deterministic = true;
        const Problem<bf16> problem(c);
        const Gradients first = problem.run();
        for (int repeat = 0; repeat < 5; ++repeat) {
          const Gradients again = problem.run();
          for (int i = 0; i < 3; ++i) EXPECT_EQ(first.x[i], again.x[i]) << name_of(c);
        }
      }
    }
  }
}

TEST(BlockSparseBackwardCuda, RefusesWhatItCannotDo) {
  BackwardArgs args;
  args.shape.heads = 3;
  args.shape.kv_heads = 2;
  args.shape.head_dim = 64;
  EXPECT_NE(backward(args, nullptr), nullptr);
  args.shape.heads = 4;
  args.shape.head_dim = 257;
  EXPECT_NE(backward(args, nullptr), nullptr);
  args.shape.head_dim = 64;
  const uint32_t word = 0;
  args.mask.words = &word;
  args.mask.heads = 3;
  EXPECT_NE(backward(args, nullptr), nullptr);
  args.mask.heads = 4;
  args.mask.block_size = 32;
  EXPECT_NE(backward(args, nullptr), nullptr);
}

}  // namespace
}  // namespace longspur::kernels::block_sparse::cuda
