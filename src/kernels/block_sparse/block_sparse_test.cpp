// Block-sparse attention: the vectorised kernels of every instruction set against the loops in
// double, and laws that both must keep. Tolerances are argued in docs/numerics.md, section
// block_sparse.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "base/aligned_buffer.h"
#include "base/thread_pool.h"
#include "kernels/attention/varlen_cases.h"
#include "kernels/block_sparse/api.h"

namespace longspur::kernels::block_sparse {
namespace {

using attention::Case;
using attention::distance;
using attention::for_each_isa;
using attention::kInfinity;
using attention::Operand;
using attention::Problem;
using attention::Results;

int64_t longest(const std::vector<int32_t>& begins) {
  int64_t most = 0;
  for (size_t b = 0; b + 1 < begins.size(); ++b)
    most = std::max<int64_t>(most, begins[b + 1] - begins[b]);
  return most;
}

// A mask with random blocks of a density: 0 and 1 are exactly none and all.
class Mask {
 public:
  Mask(const Problem& p, int64_t heads, int64_t block_size, float density, uint64_t seed = 9) {
    view_.block_size = block_size;
    view_.heads = heads;
    view_.query_blocks = ceil_div(longest(p.cu_q), kQueryBlock);
    const int64_t key_blocks = ceil_div(longest(p.cu_k), block_size);
    view_.row_words = BlockMask::words_of(key_blocks);
    const int64_t rows = p.shape.batch * heads * view_.query_blocks;
    std::vector<uint8_t> blocks(size_t(rows * key_blocks));
    for (size_t i = 0; i < blocks.size(); ++i)
      blocks[i] = uniform01(philox4x32(seed, 0, i)[0]) < density;
    words_.resize(size_t(rows * view_.row_words));
    pack_mask(blocks.data(), rows, key_blocks, words_.data());
  }
  BlockMask view() const {
    BlockMask mask = view_;
    mask.words = words_.data();
    return mask;
  }
  uint32_t* row(int64_t b, int64_t head, int64_t i) {
    return words_.data() + (view().row(b, head, i) - words_.data());
  }
  void set(int64_t b, int64_t head, int64_t i, int64_t j) {
    row(b, head, i)[j / 32] |= uint32_t{1} << (j % 32);
  }
  uint32_t* words() { return words_.data(); }

 private:
  BlockMask view_;
  std::vector<uint32_t> words_;
};

Results run_reference(const Problem& p, const BlockMask& mask) {
  Results r(p);
  forward_ref({forward_args(p, r), mask});
  backward_ref({backward_args(p, r), mask});
  return r;
}

template <class ForwardPass, class BackwardPass>
void run_passes(const ForwardPass& forward, const BackwardPass& backward, int threads) {
  ThreadPool pool(threads);
  AlignedBuffer workspace{size_t(backward.workspace_bytes())};
  pool.run([&](Team& team) {
    AlignedBuffer scratch{size_t(std::max(forward.scratch_bytes(), backward.scratch_bytes()))};
    team.dynamic_for(forward.items(), 1,
                     [&](int64_t item, int64_t) { forward.run(item, scratch.data()); });
    for (int phase = 0; phase < Backward::kPhases; ++phase) {
      team.dynamic_for(backward.items(phase), 1, [&](int64_t item, int64_t) {
        backward.run(phase, item, scratch.data(), workspace.data());
      });
    }
  });
}

Results run_kernels(const Problem& p, const BlockMask& mask, int threads = 1) {
  Results r(p);
  run_passes(Forward({forward_args(p, r), mask}), Backward({backward_args(p, r), mask}), threads);
  return r;
}

void expect_close(const Results& found, const Results& expected, DType dtype) {
  const double bound = dtype == DType::kF32 ? 3e-6 : dtype == DType::kBF16 ? 4e-3 : 5e-4;
  EXPECT_LE(distance(found.out, expected.out), bound);
  EXPECT_LE(distance(found.dq, expected.dq), bound);
  EXPECT_LE(distance(found.dk, expected.dk), bound);
  EXPECT_LE(distance(found.dv, expected.dv), bound);
  for (size_t i = 0; i < found.lse.size(); ++i) {
    if (expected.lse[i] == -kInfinity) {
      ASSERT_EQ(found.lse[i], -kInfinity) << i;
    } else {
      ASSERT_NEAR(found.lse[i], expected.lse[i], 4e-6 * (1.0 + std::abs(expected.lse[i]))) << i;
    }
  }
  for (const Operand* x : {&found.out, &found.dq, &found.dk, &found.dv})
    EXPECT_TRUE(x->gaps_untouched());
}

void expect_equal(const Operand& a, const Operand& b) {
  for (int64_t i = 0; i < a.elements(); ++i) ASSERT_EQ(a[i], b[i]) << i;
}
void expect_equal(const Results& a, const Results& b) {
  EXPECT_EQ(a.lse, b.lse);
  expect_equal(a.out, b.out);
  expect_equal(a.dq, b.dq);
  expect_equal(a.dk, b.dk);
  expect_equal(a.dv, b.dv);
}

void expect_all(const Operand& x, float value) {
  for (int64_t i = 0; i < x.elements(); ++i) ASSERT_EQ(x[i], value) << i;
}

// Lengths about the borders of blocks, queries before the first key, empty sequences.
const std::vector<int32_t> kQueries = {113, 1, 260, 0, 130, 33}, kKeys = {203, 131, 257, 5, 64, 0};

std::vector<Case> cases() {
  std::vector<Case> list;
  for (const bool causal : {true, false}) {
    list.push_back({kQueries, kKeys, 4, 2, 64, causal, 0.0});
    list.push_back({kQueries, kKeys, 9, 3, 37, causal, 0.0, DType::kBF16});
    list.push_back({kQueries, kKeys, 3, 1, 32, causal, -0.3, DType::kF16});
    list.push_back({kQueries, kKeys, 3, 3, 128, causal, 0.0, DType::kBF16});
  }
  return list;
}

TEST(BlockSparse, KernelsMatchTheReference) {
  uint64_t seed = 20;
  for (const Case& c : cases()) {
    const Problem p(c);
    for (const auto& [heads, block_size, density] :
         {std::tuple(c.heads, 128, 0.5f), {c.kv_heads, 64, 0.3f}, {int64_t{1}, 128, 0.7f}}) {
      if (++seed % 2 == 0) continue;  // every second pair: each mask meets half of the cases
      SCOPED_TRACE(concat(testing::PrintToString(c), ": mask of ", heads, " heads, ", block_size,
                          " keys, density ", density));
      const Mask mask(p, heads, block_size, density, seed);
      const Results expected = run_reference(p, mask.view());
      for_each_isa([&] { expect_close(run_kernels(p, mask.view()), expected, c.dtype); });
    }
  }
}

// A row of the mask that takes several words.
TEST(BlockSparse, ManyBlocksOfKeys) {
  for (const bool causal : {true, false}) {
    const Problem p({{150}, {4300}, 1, 1, 16, causal, 0.0});
    const Mask mask(p, 1, 64, 0.4f);
    const Results expected = run_reference(p, mask.view());
    for_each_isa([&] { expect_close(run_kernels(p, mask.view()), expected, DType::kF32); });
  }
}

TEST(BlockSparse, AllBlocksListedIsDenseBitForBit) {
  for (Case c : cases()) {
    c.queries = {1, 129, 150};
    c.keys = {70, 64, 203};
    SCOPED_TRACE(testing::PrintToString(c));
    const Problem p(c);
    const Mask mask(p, c.causal ? c.heads : c.kv_heads, c.causal ? 64 : 128, 1.0f);
    for_each_isa([&] {
      Results dense(p);
      run_passes(attention::VarlenForward(forward_args(p, dense)),
                 attention::VarlenBackward(backward_args(p, dense)), 1);
      expect_equal(run_kernels(p, mask.view()), dense);
    });
  }
}

TEST(BlockSparse, RowsWithoutListedKeysAreZeroAndGiveNoGradient) {
  for (const bool causal : {true, false}) {
    const Problem p({kQueries, kKeys, 4, 2, 40, causal, 0.0, DType::kBF16});
    const Mask none(p, 4, 128, 0.0f);
    for_each_isa([&] {
      const Results r = run_kernels(p, none.view());
      for (const Operand* x : {&r.out, &r.dq, &r.dk, &r.dv}) expect_all(*x, 0.0f);
      for (const float lse : r.lse) EXPECT_EQ(lse, -kInfinity);
    });
  }
}

// The listed block begins in the middle of the query block's view: its early rows see nothing of
// it.
TEST(BlockSparse, RowsBeforeTheListedBlockAreEmpty) {
  const Problem p({{128}, {128}, 2, 1, 24, true, 0.0});
  Mask mask(p, 1, 64, 0.0f);
  mask.set(0, 0, 0, 1);
  const Results expected = run_reference(p, mask.view());
  for_each_isa([&] {
    const Results r = run_kernels(p, mask.view());
    expect_close(r, expected, DType::kF32);
    for (size_t i = 0; i < 64; ++i) EXPECT_EQ(r.lse[i], -kInfinity) << i;
    for (int64_t i = 0; i < 64 * 2 * 24; ++i) {
      ASSERT_EQ(r.out[i], 0.0f) << i;
      ASSERT_EQ(r.dq[i], 0.0f) << i;
    }
    for (int64_t i = 0; i < 64 * 24; ++i) ASSERT_EQ(r.dv[i], 0.0f) << i;  // keys nobody lists
  });
}

TEST(BlockSparse, KeysOfOtherBlocksAreNeverRead) {
  Problem p({{260}, {260}, 2, 2, 32, true, 0.0});
  Mask mask(p, 2, 64, 0.0f);
  for (int64_t h = 0; h < 2; ++h) {
    for (int64_t i = 0; i < 3; ++i) {
      for (const int64_t j : {int64_t{0}, 2 * i}) mask.set(0, h, i, j);
    }
  }
  Problem poisoned = p;
  for (int64_t i = 64 * 2 * 32; i < 128 * 2 * 32; ++i) {  // block 1
    poisoned.k.set(i, NAN);
    poisoned.v.set(i, NAN);
  }
  for_each_isa(
      [&] { expect_equal(run_kernels(poisoned, mask.view()), run_kernels(p, mask.view())); });
  expect_equal(run_reference(poisoned, mask.view()), run_reference(p, mask.view()));
}

TEST(BlockSparse, BitsOfBlocksThatNoRowSeesAreIgnored) {
  const Problem p({{300, 100}, {300, 40}, 2, 1, 16, true, 0.0});
  const Mask mask(p, 2, 64, 0.4f);
  Mask more = mask;
  for (int64_t b = 0; b < 2; ++b) {
    const int64_t n = b == 0 ? 300 : 100, m = b == 0 ? 300 : 40;
    for (int64_t h = 0; h < 2; ++h) {
      for (int64_t i = 0; i < 3; ++i) {
        const int64_t end = i * kQueryBlock < n ? visible_blocks(i, n, m, 64, true).end : 0;
        for (int64_t j = end; j < 128; ++j) more.set(b, h, i, j);
      }
    }
  }
  for_each_isa([&] { expect_equal(run_kernels(p, more.view()), run_kernels(p, mask.view())); });
}

// A third of the heads each: dense, streaming and listed.
TEST(BlockSparse, ModesOfHeadsMixInOneLaunch) {
  const Problem p({{397, 203}, {500, 203}, 6, 2, 32, true, 0.0, DType::kBF16});
  Mask mask(p, 6, 128, 0.3f);
  std::vector<HeadPlan> plans(6);
  plans[0] = plans[3] = {HeadMode::kDense};
  plans[1] = plans[4] = {HeadMode::kStreaming, 1, 2};
  apply_head_plans(plans.data(), p.shape, mask.view(), mask.words());
  const Results expected = run_reference(p, mask.view());
  for_each_isa([&] { expect_close(run_kernels(p, mask.view()), expected, DType::kBF16); });
  // The dense heads are those of dense attention.
  Results dense(p);
  attention::varlen_forward_ref(forward_args(p, dense));
  for (const size_t head : {size_t{0}, size_t{3}}) {
    for (size_t t = 0; t < 600; ++t)
      ASSERT_EQ(expected.lse[head * 600 + t], dense.lse[head * 600 + t]) << t;
  }
}

TEST(BlockSparse, NeitherThreadsNorTheBatchChangeABit) {
  const Problem p({{150, 300}, {200, 330}, 6, 2, 24, true, 0.0, DType::kBF16});
  const Mask mask(p, 6, 128, 0.5f);
  expect_equal(run_kernels(p, mask.view(), 1), run_kernels(p, mask.view(), 3));
}

// Only the first item is run: its rows are of the query block that lists the most.
TEST(BlockSparse, TheLongestRowsComeFirst) {
  const Problem p({{512}, {512}, 2, 1, 16, false, 0.0});
  Mask mask(p, 2, 128, 0.0f);
  for (int64_t h = 0; h < 2; ++h) {
    for (int64_t i = 0; i < 4; ++i) mask.set(0, h, i, i);
  }
  mask.set(0, 1, 2, 0);
  Results r(p);
  const Forward forward({forward_args(p, r), mask.view()});
  AlignedBuffer scratch{size_t(forward.scratch_bytes())};
  ASSERT_EQ(forward.items(), 2 * 4);
  forward.run(0, scratch.data());
  for (size_t head = 0; head < 2; ++head) {
    for (size_t t = 0; t < 512; ++t)
      ASSERT_EQ(std::isnan(r.lse[head * 512 + t]), head != 1 || t / 128 != 2) << head << " " << t;
  }
}

// --- the error of bf16 against that of a plain bf16 computation ---

float rounded(double x) { return bf16_to_float(float_to_bf16(float(x))); }

// Attention as a chain of bf16 tensors: every intermediate is rounded, sums are exact. One head,
// [N, D] and [S, D].
struct Naive {
  std::vector<double> out, dq, dk, dv;
};
Naive naive_bf16(const Problem& p, const BlockMask& mask) {
  const int64_t n = p.cu_q.back(), m = p.cu_k.back(), d = p.shape.head_dim;
  const auto product = [&](const auto& a, const auto& b, int64_t i, int64_t j) {
    double sum = 0.0;
    for (int64_t x = 0; x < d; ++x) sum += double(a[i * d + x]) * double(b[j * d + x]);
    return rounded(sum);
  };
  Naive r{std::vector<double>(size_t(n * d)), std::vector<double>(size_t(n * d)),
          std::vector<double>(size_t(m * d)), std::vector<double>(size_t(m * d))};
  for (int64_t i = 0; i < n; ++i) {
    std::vector<int64_t> keys;
    for (int64_t j = 0; j < m && (!p.shape.causal || j <= i + m - n); ++j)
      if (has_block(mask.row(0, 0, i / kQueryBlock), j / mask.block_size)) keys.push_back(j);
    std::vector<double> weights, gradients;
    double max = -HUGE_VAL, sum = 0.0, delta = 0.0;
    for (const int64_t j : keys) {
      weights.push_back(rounded(double(product(p.q, p.k, i, j)) * p.shape.scale));
      max = std::max(max, weights.back());
    }
    for (double& w : weights) sum += w = std::exp(w - max);
    for (size_t x = 0; x < keys.size(); ++x) {
      weights[x] = rounded(weights[x] / sum);
      gradients.push_back(product(p.grad_out, p.v, i, keys[x]));
      delta += weights[x] * gradients[x];
    }
    for (size_t x = 0; x < keys.size(); ++x) {
      const double ds =
          rounded(double(rounded(weights[x] * (gradients[x] - delta))) * p.shape.scale);
      for (int64_t y = 0; y < d; ++y) {
        const int64_t key = keys[x] * d + y, query = i * d + y;
        r.out[size_t(query)] += weights[x] * double(p.v[key]);
        r.dq[size_t(query)] += ds * double(p.k[key]);
        r.dk[size_t(key)] += ds * double(p.q[query]);
        r.dv[size_t(key)] += weights[x] * double(p.grad_out[query]);
      }
    }
  }
  for (auto* values : {&r.out, &r.dq, &r.dk, &r.dv})
    for (double& x : *values) x = double(rounded(x));
  return r;
}

TEST(BlockSparse, Bf16IsAsCloseAsAPlainComputation) {
  for (const auto& [n, m, causal] : {std::tuple(113, 203, true), {257, 300, false}}) {
    Problem p({{n}, {m}, 1, 1, 64, causal, 0.0, DType::kBF16});
    std::fill(p.grad_lse.begin(), p.grad_lse.end(), 0.0f);
    const Mask mask(p, 1, 128, 0.6f, 3);
    // The oracle in fp32 storage, so that its own rounding does not count.
    Problem exact({{n}, {m}, 1, 1, 64, causal, 0.0, DType::kF32});
    std::fill(exact.grad_lse.begin(), exact.grad_lse.end(), 0.0f);
    const auto copy = [](Operand& to, const Operand& from) {
      for (int64_t i = 0; i < to.elements(); ++i) to.set(i, from[i]);
    };
    copy(exact.q, p.q);
    copy(exact.k, p.k);
    copy(exact.v, p.v);
    copy(exact.grad_out, p.grad_out);
    const Results expected = run_reference(exact, mask.view());
    const Naive naive = naive_bf16(p, mask.view());
    for_each_isa([&] {
      const Results found = run_kernels(p, mask.view());
      const auto check = [](const Operand& x, const Operand& oracle,
                            const std::vector<double>& plain, double factor) {
        double error = 0.0, allowed = 0.0;
        for (int64_t i = 0; i < x.elements(); ++i) {
          error = std::max(error, std::abs(double(x[i]) - double(oracle[i])));
          allowed = std::max(allowed, std::abs(plain[size_t(i)] - double(oracle[i])));
        }
        EXPECT_GT(allowed, 0.0);
        EXPECT_LE(error, factor * allowed);
      };
      check(found.out, expected.out, naive.out, 2.0);
      check(found.dq, expected.dq, naive.dq, 3.0);
      check(found.dk, expected.dk, naive.dk, 3.0);
      check(found.dv, expected.dv, naive.dv, 3.0);
    });
  }
}

TEST(BlockSparse, AMaskThatDoesNotFitIsRefused) {
  const Problem p({{300}, {300}, 2, 1, 16, true, 0.0});
  const Mask mask(p, 2, 128, 1.0f);
  Results r(p);
  BlockMask narrow = mask.view();
  narrow.query_blocks = 2;
  EXPECT_THROW(Forward({forward_args(p, r), narrow}), Error);
  EXPECT_THROW(Backward({backward_args(p, r), narrow}), Error);
  EXPECT_THROW(forward_ref({forward_args(p, r), narrow}), Error);
}

}  // namespace
}  // namespace longspur::kernels::block_sparse
