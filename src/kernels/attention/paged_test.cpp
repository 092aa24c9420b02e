// The paged cache and its attention, every instruction set and page type, against the loops in
// double of ref.cpp; tolerances are argued in docs/numerics.md, section attention.
#include "kernels/attention/paged.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "base/aligned_buffer.h"
#include "base/error.h"
#include "base/half.h"
#include "base/rng.h"
#include "base/shape.h"
#include "kernels/attention/rope.h"
#include "kernels/attention/tile.h"

namespace longspur::kernels::attention {
namespace {

const char* const kIsas[] = {"avx512bf16", "avx512", "avx2", "portable"};

// Calls f on every instruction set that this machine has; the best one is active afterwards.
template <class F>
void for_each_isa(F f) {
  const std::string best(active_isa());
  for (const char* isa : kIsas) {
    try {
      limit_isa(isa);
    } catch (const Error&) {
      continue;
    }
    SCOPED_TRACE(isa);
    f();
  }
  limit_isa(best);
}

float normal(uint64_t seed, uint64_t index) {
  const auto bits = philox4x32(seed, 0, index);
  const double radius = std::sqrt(-2.0 * std::log(1.0 - double(uniform01(bits[0]))));
  return float(radius * std::cos(2.0 * M_PI * double(uniform01(bits[1]))));
}

struct Heads {
  int64_t q, kv, dim;
};

// Some sequences with their tokens; appended and attended in pieces of the test's choice.
class Cache {
 public:
  Cache(Heads heads, KvType type, std::vector<int64_t> lengths)
      : heads_(heads), type_(type), lengths_(std::move(lengths)) {
    for (const int64_t length : lengths_) max_blocks_ = std::max(max_blocks_, blocks(length));
    max_blocks_ += side_blocks(type);
    const int64_t table = int64_t(lengths_.size()) * heads_.kv * max_blocks_;
    pool_ = AlignedBuffer(size_t(table * page_bytes(type, heads.dim)));
    // What an unused slot holds must never matter.
    std::fill_n(pool_.as<float>(), pool_.size() / 4, std::numeric_limits<float>::quiet_NaN());
    table_.resize(size_t(table));
    for (int64_t i = 0; i < table; ++i) table_[size_t(i)] = int32_t(table - 1 - i);
    for (size_t b = 0; b < lengths_.size(); ++b) {
      std::vector<float>& rows = qkv_.emplace_back(size_t(lengths_[b] * width()));
      for (size_t i = 0; i < rows.size(); ++i) rows[i] = normal(b + 1, i);
    }
    rotary_.kind = RopeKind::kNone;
    rotary_.rotary_dim = heads.dim;
    rope_ = make_rope_table(rotary_, max_blocks_ * kPageTokens, max_blocks_ * kPageTokens);
  }

  int64_t width() const { return (heads_.q + 2 * heads_.kv) * heads_.dim; }
  PagedKv kv(size_t first = 0) const {
    return {type_,
            heads_.dim,
            heads_.kv,
            const_cast<std::byte*>(pool_.data()),
            table_.data() + int64_t(first) * heads_.kv * max_blocks_,
            max_blocks_};
  }
  float* row(size_t b, int64_t token) { return qkv_[b].data() + token * width(); }
  std::vector<float>& sequence(size_t b) { return qkv_[b]; }

  // Appends tokens [begin, end) of sequence b and attends from them.
  std::vector<float> step(ThreadPool& pool, size_t b, int64_t begin, int64_t end, int64_t window) {
    std::vector<float> rows(row(b, begin), row(b, begin) + (end - begin) * width());
    return forward(pool, rows, {0, int32_t(end - begin)}, {int32_t(end)}, b, window);
  }

  std::vector<float> forward(ThreadPool& pool,
                             std::vector<float>& rows,
                             const std::vector<int32_t>& cu_seqlens,
                             const std::vector<int32_t>& kv_lens,
                             size_t first,
                             int64_t window) {
    const BatchShape shape{int64_t(kv_lens.size()), cu_seqlens.data(), kv_lens.data()};
    const PagedKv paged = kv(first);
    RopeAppendArgs append;
    append.qkv = rows.data();
    append.ld = width();
    append.heads = heads_.q;
    append.cos = rope_.cos.data();
    append.sin = rope_.sin.data();
    append.rotary_dim = heads_.dim;
    std::vector<float> out(size_t(cu_seqlens.back()) * size_t(heads_.q * heads_.dim));
    const AttentionArgs args = arguments(rows, out, window);
    AlignedBuffer workspace(size_t(workspace_bytes(shape, heads_.q, paged, pool.size())));
    pool.run([&](Team& team) {
      rope_append(team, append, shape, paged);
      paged_attention(team, args, shape, paged, workspace.data());
    });
    return out;
  }

  // The oracle for the rotated rows [begin, end) of sequence b.
  std::vector<float> reference(size_t b, int64_t begin, int64_t end, int64_t window) {
    std::vector<float> rows(row(b, begin), row(b, begin) + (end - begin) * width());
    for (int64_t t = 0; t < end - begin; ++t) rotate_query(rows.data() + t * width(), begin + t);
    std::vector<float> out(size_t((end - begin) * heads_.q * heads_.dim));
    const int32_t cu[2] = {0, int32_t(end - begin)};
    const int32_t length = int32_t(end);
    paged_attention_ref(arguments(rows, out, window), {1, cu, &length}, kv(b));
    return out;
  }

  float scale() const { return 1.0f / std::sqrt(float(heads_.dim)); }

 private:
  static int64_t blocks(int64_t length) { return ceil_div(length, kPageTokens); }

  AttentionArgs arguments(std::vector<float>& rows, std::vector<float>& out, int64_t window) const {
    AttentionArgs args;
    args.q = rows.data();
    args.ldq = width();
    args.out = out.data();
    args.ldo = heads_.q * heads_.dim;
    args.heads = heads_.q;
    args.scale = scale();
    args.window = window;
    return args;
  }

  // Rotates the query heads of one row; for bf16 and NVFP4 pages rounds them as the kernels do, so
  // that the comparison is about everything else.
  void rotate_query(float* q, int64_t position) const {
    const int64_t half = heads_.dim / 2;
    for (int64_t h = 0; h < heads_.q; ++h, q += heads_.dim) {
      for (int64_t i = 0; i < half; ++i) {
        const float c = rope_.cos[size_t(position * half + i)];
        const float s = rope_.sin[size_t(position * half + i)];
        const float a = q[i], b = q[i + half];
        q[i] = a * c - b * s;
        q[i + half] = b * c + a * s;
      }
      if (type_ == KvType::kF32) continue;
      const float factor = scale() * kLog2E;
      for (int64_t i = 0; i < heads_.dim; ++i)
        q[i] = bf16_to_float(float_to_bf16(q[i] * factor)) / factor;
    }
  }

  Heads heads_;
  KvType type_;
  std::vector<int64_t> lengths_;
  int64_t max_blocks_ = 0;
  AlignedBuffer pool_;
  std::vector<int32_t> table_;
  std::vector<std::vector<float>> qkv_;
  RopeParams rotary_;
  RopeTable rope_;
};

double tolerance(KvType type) { return type == KvType::kF32 ? 1e-5 : 0.02; }

void expect_close(const std::vector<float>& found,
                  const std::vector<float>& expected,
                  double tolerance) {
  ASSERT_EQ(found.size(), expected.size());
  double worst = 0.0, squares = 0.0;
  for (size_t i = 0; i < found.size(); ++i) {
    ASSERT_TRUE(std::isfinite(found[i])) << "element " << i;
    const double error = std::abs(double(found[i]) - double(expected[i]));
    worst = std::max(worst, error);
    squares += error * error;
  }
  EXPECT_LE(worst, tolerance);
  // A bound on the worst element alone would let a systematic error pass.
  EXPECT_LE(std::sqrt(squares / double(found.size())), tolerance / 8);
}

constexpr Heads kShapes[] = {{9, 3, 64}, {4, 4, 128}, {7, 1, 80}, {6, 2, 18}, {50, 1, 16}};
constexpr KvType kTypes[] = {KvType::kF32, KvType::kBF16, KvType::kNVFP4};

bool accepts(KvType type, Heads heads) { return type != KvType::kNVFP4 || heads.dim % 16 == 0; }

TEST(PagedAttention, PrefillOfOneSequenceMatchesTheReference) {
  ThreadPool pool(2);
  for_each_isa([&] {
    for (const Heads heads : kShapes) {
      for (const KvType type : kTypes) {
        if (!accepts(type, heads)) continue;
        SCOPED_TRACE(concat(heads.q, "/", heads.kv, "/", heads.dim, " type ", int(type)));
        Cache cache(heads, type, {131});
        const std::vector<float> out = cache.step(pool, 0, 0, 131, 0);
        expect_close(out, cache.reference(0, 0, 131, 0), tolerance(type));
      }
    }
  });
}

TEST(PagedAttention, DecodeSplitOverItsKeysMatchesTheReference) {
  ThreadPool pool(2);
  for_each_isa([&] {
    for (const Heads heads : kShapes) {
      for (const KvType type : kTypes) {
        if (!accepts(type, heads)) continue;
        Cache cache(heads, type, {620});
        cache.step(pool, 0, 0, 618, 0);
        cache.step(pool, 0, 618, 619, 0);
        const std::vector<float> out = cache.step(pool, 0, 619, 620, 0);
        expect_close(out, cache.reference(0, 619, 620, 0), tolerance(type));
      }
    }
  });
}

TEST(PagedAttention, AWindowHidesOlderKeys) {
  ThreadPool pool(2);
  for_each_isa([&] {
    for (const int64_t window : {1, 64, 65, 130, 5000}) {
      for (const KvType type : kTypes) {
        SCOPED_TRACE(concat("window ", window, " type ", int(type)));
        Cache cache({6, 2, 64}, type, {350});
        cache.step(pool, 0, 0, 250, window);
        const std::vector<float> chunk = cache.step(pool, 0, 250, 349, window);
        expect_close(chunk, cache.reference(0, 250, 349, window), tolerance(type));
        const std::vector<float> token = cache.step(pool, 0, 349, 350, window);
        expect_close(token, cache.reference(0, 349, 350, window), tolerance(type));
      }
    }
  });
}

// One key: the weights are exactly 1, so the output is the value itself as the page holds it.
TEST(PagedAttention, OneKeyGivesItsValue) {
  ThreadPool pool(1);
  for_each_isa([&] {
    Cache cache({4, 2, 64}, KvType::kBF16, {1});
    const std::vector<float> out = cache.step(pool, 0, 0, 1, 0);
    for (int64_t h = 0; h < 4; ++h) {
      for (int64_t i = 0; i < 64; ++i) {
        const float value = cache.row(0, 0)[(4 + 2 + h / 2) * 64 + i];
        EXPECT_EQ(out[size_t(h * 64 + i)], bf16_to_float(float_to_bf16(value)));
      }
    }
  });
}

// Scores beyond what exp can hold in fp32, and a run of equal ones.
TEST(PagedAttention, HugeAndEqualScoresStayFinite) {
  ThreadPool pool(2);
  for_each_isa([&] {
    for (const KvType type : kTypes) {
      Cache huge({2, 1, 64}, type, {200});
      for (float& x : huge.sequence(0)) x *= 100.0f;
      for (const float x : huge.step(pool, 0, 0, 200, 0)) ASSERT_TRUE(std::isfinite(x));
      Cache equal({2, 1, 64}, type, {200});
      std::fill(equal.sequence(0).begin(), equal.sequence(0).end(), 0.5f);
      for (const float x : equal.step(pool, 0, 0, 200, 0)) EXPECT_NEAR(x, 0.5, 1e-6);
    }
  });
}

std::vector<float> batch_of_all(ThreadPool& pool, Cache& cache, size_t sequences, int64_t begin) {
  std::vector<float> rows;
  std::vector<int32_t> cu_seqlens = {0}, kv_lens;
  for (size_t b = 0; b < sequences; ++b) {
    const std::vector<float>& own = cache.sequence(b);
    rows.insert(rows.end(), own.begin() + begin * cache.width(), own.end());
    cu_seqlens.push_back(int32_t(int64_t(rows.size()) / cache.width()));
    kv_lens.push_back(int32_t(int64_t(own.size()) / cache.width()));
  }
  return cache.forward(pool, rows, cu_seqlens, kv_lens, 0, 0);
}

TEST(PagedAttention, ASequenceDoesNotDependOnBatchOrTeam) {
  const std::vector<int64_t> lengths = {3, 400, 64, 1, 129};
  for_each_isa([&] {
    for (const KvType type : kTypes) {
      std::vector<float> expected;
      ThreadPool one(1);
      Cache alone({9, 3, 64}, type, lengths);
      for (size_t b = 0; b < lengths.size(); ++b) {
        const std::vector<float> out = alone.step(one, b, 0, lengths[b], 0);
        expected.insert(expected.end(), out.begin(), out.end());
      }
      for (const int threads : {1, 2, 5}) {
        ThreadPool pool(threads);
        Cache together({9, 3, 64}, type, lengths);
        EXPECT_EQ(batch_of_all(pool, together, lengths.size(), 0), expected) << threads;
      }
    }
  });
}

TEST(PagedAttention, AppendingInPiecesFillsTheSamePages) {
  ThreadPool pool(2);
  for_each_isa([&] {
    for (const KvType type : kTypes) {
      Cache whole({9, 3, 64}, type, {200}), pieces({9, 3, 64}, type, {200});
      whole.step(pool, 0, 0, 200, 0);
      for (const auto& [begin, end] : {std::pair(0, 1), {1, 63}, {63, 64}, {64, 130}, {130, 200}}) {
        pieces.step(pool, 0, begin, end, 0);
      }
      EXPECT_EQ(whole.reference(0, 150, 200, 0), pieces.reference(0, 150, 200, 0));
    }
  });
}

// Against bf16 pages of the same rows: the error of the format alone. With a window of one key the
// output is that key's value as the page holds it.
TEST(PagedAttention, Nvfp4KeepsValuesToItsPrecision) {
  ThreadPool pool(2);
  for_each_isa([&] {
    Cache exact({1, 1, 64}, KvType::kBF16, {330}), packed({1, 1, 64}, KvType::kNVFP4, {330});
    const std::vector<float> a = exact.step(pool, 0, 0, 330, 1),
                             b = packed.step(pool, 0, 0, 330, 1);
    double errors[6] = {}, sizes[6] = {};
    for (size_t i = 0; i < a.size(); ++i) {
      const size_t block = i / (64 * kPageTokens);
      errors[block] += double(a[i] - b[i]) * double(a[i] - b[i]);
      sizes[block] += double(a[i]) * double(a[i]);
    }
    for (int block = 0; block < 6; ++block) {
      if (block == 0 || block == 5)
        EXPECT_EQ(errors[block], 0.0) << block;  // sinks and the newest block: bf16
      else
        EXPECT_NEAR(errors[block] / sizes[block], .0067, .0007) << block;  // the sweep rule's
    }
  });
}

TEST(PagedAttention, Nvfp4PagesTakeLessThanThreeTenths) {
  for (const int64_t d : {64, 80, 128, 256}) {
    const int64_t blocks = 8192 / kPageTokens;
    const double packed = double(page_bytes(KvType::kNVFP4, d) * (blocks + kSideBlocks));
    EXPECT_LE(packed, 0.30 * double(page_bytes(KvType::kBF16, d) * blocks)) << d;
    // a quarter of a bf16 page fits in a page
    EXPECT_GE(page_bytes(KvType::kNVFP4, d) * 4, page_bytes(KvType::kBF16, d)) << d;
  }
}

// A rotation by the difference of two positions: scores depend on distance alone.
TEST(RopeTable, ScoresDependOnDistanceAlone) {
  RopeParams params;
  params.rotary_dim = 64;
  const RopeTable table = make_rope_table(params, 512, 512);
  const auto dot_at = [&](int64_t q_position, int64_t k_position) {
    double dot = 0.0;
    for (int64_t i = 0; i < 32; ++i) {
      const auto q = size_t(q_position * 32 + i), k = size_t(k_position * 32 + i);
      dot +=
          double(table.cos[q]) * double(table.cos[k]) + double(table.sin[q]) * double(table.sin[k]);
    }
    return dot;
  };
  EXPECT_NEAR(dot_at(40, 10), dot_at(430, 400), 1e-4);
  EXPECT_NEAR(dot_at(0, 500), dot_at(11, 511), 1e-4);
  EXPECT_GT(std::abs(dot_at(40, 10) - dot_at(40, 11)), 1e-2);
}

TEST(RopeAppend, HeadsAreNormalisedBeforeTheRotation) {
  constexpr int64_t kDim = 32, kHeads = 2;
  ThreadPool pool(1);
  for_each_isa([&] {
    std::vector<float> rows(4 * kDim), q_norm(kDim), k_norm(kDim, 1.0f);
    for (size_t i = 0; i < rows.size(); ++i) rows[i] = normal(3, i);
    for (size_t i = 0; i < q_norm.size(); ++i) q_norm[i] = normal(4, i);
    const std::vector<float> before = rows;
    const std::vector<float> cos(kDim / 2, 0.0f), sin(kDim / 2, 1.0f);  // a quarter turn
    AlignedBuffer page(size_t(page_bytes(KvType::kF32, kDim)));
    const int32_t id = 0, cu[2] = {0, 1}, length = 1;
    RopeAppendArgs args;
    args.qkv = rows.data();
    args.ld = 4 * kDim;
    args.heads = kHeads;
    args.cos = cos.data();
    args.sin = sin.data();
    args.rotary_dim = kDim;
    args.q_norm = q_norm.data();
    args.k_norm = k_norm.data();
    args.norm_eps = 1e-6f;
    const PagedKv kv{KvType::kF32, kDim, 1, page.data(), &id, 1};
    pool.run([&](Team& team) { rope_append(team, args, {1, cu, &length}, kv); });
    for (int64_t h = 0; h < kHeads; ++h) {
      double squares = 0.0;
      for (int64_t i = 0; i < kDim; ++i) squares += std::pow(before[size_t(h * kDim + i)], 2);
      const double scale = 1.0 / std::sqrt(squares / double(kDim) + 1e-6);
      for (int64_t i = 0; i < kDim / 2; ++i) {
        const auto normed = [&](int64_t j) {
          return double(before[size_t(h * kDim + j)]) * scale * double(q_norm[size_t(j)]);
        };
        EXPECT_NEAR(rows[size_t(h * kDim + i)], -normed(i + kDim / 2), 1e-5);
        EXPECT_NEAR(rows[size_t(h * kDim + i + kDim / 2)], normed(i), 1e-5);
      }
    }
  });
}

TEST(PagedAttention, AnUnknownInstructionSetIsNamed) { EXPECT_THROW(limit_isa("sse2"), Error); }

}  // namespace
}  // namespace longspur::kernels::attention
