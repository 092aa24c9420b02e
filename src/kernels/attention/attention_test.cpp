// Attention over packed sequences: the vectorised kernels of every instruction set against the
// loops in double, and laws that both must keep. Tolerances are argued in docs/numerics.md, section
// attention.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <numeric>
#include <string>
#include <vector>

#include "base/aligned_buffer.h"
#include "base/error.h"
#include "base/half.h"
#include "base/rng.h"
#include "base/thread_pool.h"
#include "kernels/attention/tile.h"
#include "kernels/attention/varlen.h"

namespace longspur::kernels::attention {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct Case {
  std::vector<int32_t> queries, keys;  // lengths of the sequences
  int64_t heads, kv_heads, dim;
  bool causal;
  double scale;  // 0: 1 / sqrt(D)
  DType dtype = DType::kF32;
};

std::ostream& operator<<(std::ostream& out, const Case& c) {
  return out << dtype_info(c.dtype).name << " H " << c.heads << " G " << c.kv_heads << " D "
             << c.dim << (c.causal ? " causal" : " full") << " scale " << c.scale << " sequences "
             << c.queries.size();
}

std::vector<int32_t> cumulative(const std::vector<int32_t>& lengths) {
  std::vector<int32_t> begins = {0};
  for (const int32_t n : lengths) begins.push_back(begins.back() + n);
  return begins;
}

size_t element_bytes(DType dtype) { return size_t(dtype_info(dtype).bytes); }

void put(std::byte* to, DType dtype, size_t i, float x) {
  if (dtype == DType::kF32) reinterpret_cast<float*>(to)[i] = x;
  if (dtype == DType::kBF16) reinterpret_cast<uint16_t*>(to)[i] = float_to_bf16(x);
  if (dtype == DType::kF16) reinterpret_cast<uint16_t*>(to)[i] = float_to_fp16(x);
}
float get(const std::byte* from, DType dtype, size_t i) {
  if (dtype == DType::kF32) return reinterpret_cast<const float*>(from)[i];
  const uint16_t bits = reinterpret_cast<const uint16_t*>(from)[i];
  return dtype == DType::kBF16 ? bf16_to_float(bits) : fp16_to_float(bits);
}

// [T, heads, D] with a gap behind each row, which must neither be read nor written.
class Operand {
 public:
  Operand(int64_t tokens, int64_t heads, int64_t dim, DType dtype)
      : tokens_(tokens), heads_(heads), dim_(dim), stride_(dim + 3), dtype_(dtype) {
    data_.resize(size_t(tokens * heads * stride_) * element_bytes(dtype));
    for (size_t i = 0; i < size_t(tokens * heads * stride_); ++i) put(data_.data(), dtype, i, NAN);
  }
  void fill(uint64_t seed, float spread = 1.0f) {
    for (int64_t i = 0; i < elements(); ++i) {
      const auto bits = philox4x32(seed, 0, uint64_t(i));
      const double radius = std::sqrt(-2.0 * std::log(1.0 - double(uniform01(bits[0]))));
      set(i, spread * float(radius * std::cos(2.0 * M_PI * double(uniform01(bits[1])))));
    }
  }
  int64_t elements() const { return tokens_ * heads_ * dim_; }
  void set(int64_t i, float x) { put(data_.data(), dtype_, at(i), x); }
  float operator[](int64_t i) const { return get(data_.data(), dtype_, at(i)); }
  bool gaps_untouched() const {
    for (int64_t row = 0; row < tokens_ * heads_; ++row) {
      for (int64_t i = dim_; i < stride_; ++i)
        if (!std::isnan(get(data_.data(), dtype_, size_t(row * stride_ + i)))) return false;
    }
    return true;
  }
  ConstRows rows() const { return {data_.data(), heads_ * stride_, stride_}; }
  Rows mutable_rows() { return {data_.data(), heads_ * stride_, stride_}; }

 private:
  size_t at(int64_t i) const { return size_t(i / dim_ * stride_ + i % dim_); }
  int64_t tokens_, heads_, dim_, stride_;
  DType dtype_;
  std::vector<std::byte> data_;
};

struct Problem {
  explicit Problem(const Case& c)
      : cu_q(cumulative(c.queries)),
        cu_k(cumulative(c.keys)),
        q(cu_q.back(), c.heads, c.dim, c.dtype),
        k(cu_k.back(), c.kv_heads, c.dim, c.dtype),
        v(cu_k.back(), c.kv_heads, c.dim, c.dtype),
        grad_out(cu_q.back(), c.heads, c.dim, c.dtype),
        grad_lse(size_t(c.heads * cu_q.back())) {
    q.fill(1);
    k.fill(2);
    v.fill(3);
    grad_out.fill(4);
    for (size_t i = 0; i < grad_lse.size(); ++i)
      grad_lse[i] = 2.0f * uniform01(philox4x32(5, 0, i)[0]) - 1.0f;
    shape.cu_seqlens_q = cu_q.data();
    shape.cu_seqlens_k = cu_k.data();
    shape.batch = int64_t(c.queries.size());
    shape.heads = c.heads;
    shape.kv_heads = c.kv_heads;
    shape.head_dim = c.dim;
    shape.causal = c.causal;
    shape.scale = c.scale == 0.0 ? 1.0 / std::sqrt(double(c.dim)) : c.scale;
    shape.dtype = c.dtype;
  }
  int64_t queries() const { return cu_q.back(); }

  std::vector<int32_t> cu_q, cu_k;
  Operand q, k, v, grad_out;
  std::vector<float> grad_lse;
  VarlenShape shape;
};

struct Results {
  explicit Results(const Problem& p)
      : out(p.queries(), p.shape.heads, p.shape.head_dim, p.shape.dtype),
        dq(out),
        dk(p.cu_k.back(), p.shape.kv_heads, p.shape.head_dim, p.shape.dtype),
        dv(dk),
        lse(size_t(p.shape.heads * p.queries()), NAN) {}
  Operand out, dq, dk, dv;
  std::vector<float> lse;
};

VarlenForwardArgs forward_args(const Problem& p, Results& r) {
  return {p.shape,      p.q.rows(), p.k.rows(), p.v.rows(), r.out.mutable_rows(),
          r.lse.data(), p.queries()};
}
VarlenBackwardArgs backward_args(const Problem& p, Results& r) {
  VarlenBackwardArgs args{};
  args.shape = p.shape;
  args.q = p.q.rows();
  args.k = p.k.rows();
  args.v = p.v.rows();
  args.out = r.out.rows();
  args.grad_out = p.grad_out.rows();
  args.lse = r.lse.data();
  args.lse_stride = p.queries();
  args.grad_lse = p.grad_lse.data();
  args.grad_lse_stride = p.queries();
  args.dq = r.dq.mutable_rows();
  args.dk = r.dk.mutable_rows();
  args.dv = r.dv.mutable_rows();
  return args;
}

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

// Root mean square of the difference over that of the reference; 0 when both are all zero.
double distance(const Operand& found, const Operand& expected) {
  double difference = 0.0, size = 0.0;
  for (int64_t i = 0; i < found.elements(); ++i) {
    difference += std::pow(double(found[i]) - double(expected[i]), 2);
    size += std::pow(double(expected[i]), 2);
  }
  return difference == 0.0 ? 0.0 : std::sqrt(difference / (size + 1e-30));
}

template <class F>
void for_each_isa(F f) {
  const std::string best(active_isa());
  for (const char* isa : {"avx512bf16", "avx512", "avx2", "portable"}) {
    try {
      limit_isa(isa);
    } catch (const Error&) {
      continue;  // not of this machine
    }
    SCOPED_TRACE(isa);
    f();
  }
  limit_isa(best);
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
