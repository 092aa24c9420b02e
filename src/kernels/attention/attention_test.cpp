// Attention over packed sequences: the vectorised kernels of every instruction set against the
// loops in double, and laws that both must keep. Tolerances are argued in docs/numerics.md, section
// attention.
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "base/aligned_buffer.h"
#include "base/thread_pool.h"
#include "kernels/attention/varlen_cases.h"

namespace longspur::kernels::attention {
namespace {

Results run_reference(const Problem& p) {
  Results r(p);
  varlen_forward_ref(forward_args(p, r));
  varlen_backward_ref(backward_args(p, r));
  return r;
}

Results run_kernels(const Problem& p, int threads = 1) {
  Results r(p);
  ThreadPool pool(threads);
  const VarlenForward forward(forward_args(p, r));
  const VarlenBackward backward(backward_args(p, r));
  AlignedBuffer workspace{size_t(backward.workspace_bytes())};
  pool.run([&](Team& team) {
    AlignedBuffer scratch{size_t(std::max(forward.scratch_bytes(), backward.scratch_bytes()))};
    team.dynamic_for(forward.items(), 1,
                     [&](int64_t item, int64_t) { forward.run(item, scratch.data()); });
    for (int phase = 0; phase < VarlenBackward::kPhases; ++phase) {
      team.dynamic_for(backward.items(phase), 1, [&](int64_t item, int64_t) {
        backward.run(phase, item, scratch.data(), workspace.data());
      });
    }
  });
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

std::vector<Case> cases() {
  const std::vector<int32_t> q = {70, 0, 1, 131, 33, 5}, k = {70, 5, 131, 67, 0, 64};
  std::vector<Case> list;
  for (const bool causal : {true, false}) {
    list.push_back({q, k, 4, 2, 64, causal, 0.0});
    list.push_back({q, k, 9, 3, 37, causal, 0.0, DType::kBF16});
    list.push_back({q, k, 3, 3, 16, causal, -0.3, DType::kF16});
    list.push_back({q, k, 2, 1, 1, causal, 2.0});
    list.push_back({q, k, 3, 1, 128, causal, 0.0, DType::kBF16});
    list.push_back({q, k, 2, 2, 256, causal, 0.0, DType::kF16});
    list.push_back({{3}, {200}, 301, 1, 8, causal, 0.0});   // a group of more heads than a tile
    list.push_back({{400}, {400}, 1, 1, 40, causal, 0.0});  // several tiles of queries
  }
  return list;
}

TEST(VarlenAttention, KernelsMatchTheReference) {
  for (const Case& c : cases()) {
    SCOPED_TRACE(testing::PrintToString(c));
    const Problem p(c);
    const Results expected = run_reference(p);
    for_each_isa([&] { expect_close(run_kernels(p), expected, c.dtype); });
  }
}

TEST(VarlenAttention, RowsWithoutKeysAreZeroAndGiveNoGradient) {
  const Case c{{5}, {2}, 2, 1, 16, true, 0.0};  // queries 0, 1 and 2 stand before the first key
  const Problem p(c);
  for_each_isa([&] {
    const Results r = run_kernels(p);
    for (int64_t token = 0; token < 3; ++token) {
      for (int64_t head = 0; head < 2; ++head) {
        EXPECT_EQ(r.lse[size_t(head * 5 + token)], -kInfinity);
        for (int64_t i = 0; i < 16; ++i) {
          EXPECT_EQ(r.out[(token * 2 + head) * 16 + i], 0.0f);
          EXPECT_EQ(r.dq[(token * 2 + head) * 16 + i], 0.0f);
        }
      }
    }
    // One key: its value, exactly.
    for (int64_t i = 0; i < 16; ++i) EXPECT_EQ(r.out[3 * 32 + i], p.v[i]);
  });
}

TEST(VarlenAttention, SequencesDoNotSeeEachOther) {
  // The last sequence computed alone is bit-equal, whatever stands before it.
  const Case together{{100, 77}, {90, 133}, 4, 2, 40, true, 0.0};
  Problem whole(together);
  for_each_isa([&] {
    const Results all = run_kernels(whole);
    Case alone = together;
    alone.queries = {77};
    alone.keys = {133};
    Problem part(alone);
    const auto copy = [](Operand& to, const Operand& from) {
      for (int64_t i = 0; i < to.elements(); ++i)
        to.set(i, from[from.elements() - to.elements() + i]);
    };
    copy(part.q, whole.q);
    copy(part.k, whole.k);
    copy(part.v, whole.v);
    copy(part.grad_out, whole.grad_out);
    for (size_t h = 0; h < 4; ++h) {
      for (size_t t = 0; t < 77; ++t) part.grad_lse[h * 77 + t] = whole.grad_lse[h * 177 + 100 + t];
    }
    const Results one = run_kernels(part);
    const auto equal_tail = [](const Operand& a, const Operand& b) {
      for (int64_t i = 0; i < a.elements(); ++i)
        if (a[i] != b[b.elements() - a.elements() + i]) return false;
      return true;
    };
    EXPECT_TRUE(equal_tail(one.out, all.out));
    EXPECT_TRUE(equal_tail(one.dq, all.dq));
    EXPECT_TRUE(equal_tail(one.dk, all.dk));
    EXPECT_TRUE(equal_tail(one.dv, all.dv));
  });
}

TEST(VarlenAttention, ThreadsDoNotChangeABit) {
  const Problem p({{150, 3}, {200, 130}, 6, 2, 24, true, 0.0, DType::kBF16});
  const Results one = run_kernels(p, 1), three = run_kernels(p, 3);
  for (int64_t i = 0; i < one.out.elements(); ++i) {
    ASSERT_EQ(one.out[i], three.out[i]);
    ASSERT_EQ(one.dq[i], three.dq[i]);
  }
  for (int64_t i = 0; i < one.dk.elements(); ++i) {
    ASSERT_EQ(one.dk[i], three.dk[i]);
    ASSERT_EQ(one.dv[i], three.dv[i]);
  }
  EXPECT_EQ(one.lse, three.lse);
}

// Splitting the keys in two and merging by log-sum-exp gives the attention over all of them.
TEST(VarlenAttention, PartsMergeByLogSumExp) {
  const Problem whole({{9}, {150}, 2, 1, 32, false, 0.0});
  for_each_isa([&] {
    const Results all = run_kernels(whole);
    Problem first({{9}, {83}, 2, 1, 32, false, 0.0}), second({{9}, {67}, 2, 1, 32, false, 0.0});
    for (int64_t i = 0; i < whole.k.elements(); ++i) {
      Problem& part = i < first.k.elements() ? first : second;
      const int64_t at = i < first.k.elements() ? i : i - first.k.elements();
      part.k.set(at, whole.k[i]);
      part.v.set(at, whole.v[i]);
    }
    const Results a = run_kernels(first), b = run_kernels(second);
    for (int64_t token = 0; token < 9; ++token) {
      for (int64_t head = 0; head < 2; ++head) {
        const size_t row = size_t(head * 9 + token);
        const float lse = std::log(std::exp(a.lse[row]) + std::exp(b.lse[row]));
        EXPECT_NEAR(all.lse[row], lse, 1e-5);
        for (int64_t i = 0; i < 32; ++i) {
          const int64_t at = (token * 2 + head) * 32 + i;
          EXPECT_NEAR(
              all.out[at],
              std::exp(a.lse[row] - lse) * a.out[at] + std::exp(b.lse[row] - lse) * b.out[at],
              1e-5);
        }
      }
    }
  });
}

TEST(VarlenAttention, HugeScoresStayFinite) {
  Problem p({{65}, {65}, 2, 1, 64, true, 0.0});
  p.q.fill(6, 1e3f);
  p.k.fill(7, 1e3f);  // scores of order 1e6
  const Results expected = run_reference(p);
  for_each_isa([&] {
    const Results r = run_kernels(p);
    for (int64_t i = 0; i < r.out.elements(); ++i) ASSERT_TRUE(std::isfinite(r.out[i])) << i;
    // A score is exact to 1e6 * some u, so a weight to some per cent; nearly all rows have one key.
    EXPECT_LE(distance(r.out, expected.out), 0.05);
  });
}

TEST(VarlenAttention, NanStaysInTheRowsThatSeeIt) {
  Problem p({{100}, {100}, 2, 2, 24, true, 0.0});
  p.k.set((70 * 2 + 1) * 24, NAN);  // key 70 of head 1
  for_each_isa([&] {
    const Results r = run_kernels(p);
    for (int64_t token = 0; token < 100; ++token) {
      for (int64_t head = 0; head < 2; ++head) {
        const bool sees = head == 1 && token >= 70;
        EXPECT_EQ(std::isnan(r.out[(token * 2 + head) * 24]), sees) << token << " " << head;
        EXPECT_EQ(std::isnan(r.lse[size_t(head * 100 + token)]), sees) << token << " " << head;
      }
    }
  });
}

TEST(VarlenAttention, NothingToDo) {
  for (const Case& c : {Case{{}, {}, 2, 1, 8, true, 0.0}, Case{{0, 0}, {0, 3}, 2, 1, 8, true, 0.0},
                        Case{{3}, {0}, 2, 1, 8, true, 0.0}}) {
    const Problem p(c);
    const Results r = run_kernels(p);
    for (int64_t i = 0; i < r.dk.elements(); ++i) EXPECT_EQ(r.dk[i], 0.0f);
    for (int64_t i = 0; i < r.out.elements(); ++i) EXPECT_EQ(r.out[i], 0.0f);
    for (int64_t i = 0; i < r.dq.elements(); ++i) EXPECT_EQ(r.dq[i], 0.0f);
    for (const float lse : r.lse) EXPECT_EQ(lse, -kInfinity);
  }
}

}  // namespace
}  // namespace longspur::kernels::attention
