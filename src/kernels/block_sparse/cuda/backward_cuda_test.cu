// Gradients on a device against the reference in double, within three times the error that 16-bit
// probabilities and gradients of scores cost anyway; and laws: repeated deterministic runs are
// equal bit for bit, other sequences' NaNs stay with them, a full mask is dense attention.
#include <gtest/gtest.h>

#include <future>

#include "kernels/block_sparse/cuda/backward_test_util.cuh"

namespace longspur::kernels::block_sparse::cuda {
namespace {

double distance(const std::vector<double>& a, const std::vector<double>& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += (a[i] - b[i]) * (a[i] - b[i]);
  return std::sqrt(sum);
}

// NaN fails: every element must have been written. Gradients that cancel to 0 (a query of one key)
// are 0 within rounding of terms of about 1.
template <class T>
void check(const Case& c, bool expect_fast = true) {
  const Problem<T> problem(c);
  bool fast = false;
  auto naive = std::async(std::launch::async, [&] { return problem.naive(); });
  const Gradients found = problem.run(&fast), expected = problem.expected(), cost = naive.get();
  EXPECT_EQ(fast, expect_fast) << name_of(c);
  for (int i = 0; i < 3; ++i) {
    const auto sound = [&](const Gradients& g) { return problem.sound(g.x[i], i == 0); };
    const std::vector<double> exact = sound(expected);
    const double floor = 1e-5 * std::sqrt(double(exact.size()));
    EXPECT_LE(distance(sound(found), exact), 3 * distance(sound(cost), exact) + floor)
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
        for (int i = 0; i < 2; ++i) {
          const Picks blocks = seed % 3 == 0   ? Picks::kDense
                               : seed % 7 == 1 ? Picks::kFull
                                               : Picks::kRandom;
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
        Case c{{200, 130, 5}, {201, 130, 180}, 4, 2, 128, causal, blocks, block_size, 4};
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
    check<bf16>({{270}, {270}, 8, 1, dim, true, Picks::kDense});
    check<__half>({{270}, {270}, 8, 1, dim, true, Picks::kFirst, 64, 8});
    check<bf16>({{260, 20}, {200, 300}, 8, 1, dim, false, Picks::kRandom, 128, 8});
  }
}

// Groups too large for the cache, whose heads are worked on one after the other: dk and dv of all
// columns are summed in the workspace.
TEST(BlockSparseBackwardCuda, HeadsOneByOne) {
  LONGSPUR_REQUIRE_DEVICE();
  for (const int dim : {64, 128}) {
    for (const int block_size : {64, 128}) {
      // The longest sequence decides, which one of few keys is too.
      Case c{{45'000 / dim * 8, 150}, {3, 300}, 12, 1, dim, false, Picks::kRandom, block_size, 12};
      check<bf16>(c);
      c.causal = true;
      c.mask_heads = 1;
      check<__half>(c);
    }
  }
}

TEST(BlockSparseBackwardCuda, OtherTypesAndSizes) {
  LONGSPUR_REQUIRE_DEVICE();
  for (const Picks blocks : {Picks::kDense, Picks::kRandom, Picks::kEmptyRows}) {
    for (const bool causal : {true, false}) {
      Case c{{70, 0, 90}, {130, 7, 80}, 4, 2, 128, causal, blocks, 64, 4};
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
        Case c{{600, 100}, {600, 150}, 4, 2, dim, true, blocks, block_size, 4};
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
