// The paged cache and its attention, every instruction set and page type, against the loops in
// double of ref.cpp; tolerances are argued in docs/numerics.md, section attention.
#include "kernels/attention/paged.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "base/aligned_buffer.h"
#include "base/error.h"
#include "base/half.h"
#include "kernels/attention/paged_cases.h"
#include "kernels/attention/rope.h"

namespace longspur::kernels::attention {
namespace {

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
      EXPECT_EQ(whole.reference(0, 192, 200, 0), pieces.reference(0, 192, 200, 0));
    }
  });
}

// A query sees the same numbers however its prompt was cut: pieces that end inside blocks, at their
// ends, or end one block and begin another.
TEST(PagedAttention, Nvfp4DoesNotDependOnHowAPromptIsCut) {
  ThreadPool pool(2);
  for_each_isa([&] {
    for (const Heads heads : {Heads{9, 3, 64}, {7, 1, 80}}) {
      for (const int64_t window : {0, 70}) {
        Cache whole(heads, KvType::kNVFP4, {400});
        const std::vector<float> expected = whole.step(pool, 0, 0, 400, window);
        for (const std::vector<int64_t>& ends : {std::vector<int64_t>{400},
                                                 {64, 128, 192, 400},
                                                 {20, 90, 200, 399, 400},
                                                 {100, 140, 193, 256, 400},
                                                 {63, 65, 127, 129, 300, 400}}) {
          Cache pieces(heads, KvType::kNVFP4, {400});
          std::vector<float> found;
          int64_t begin = 0;
          for (const int64_t end : ends) {
            const std::vector<float> piece = pieces.step(pool, 0, begin, end, window);
            found.insert(found.end(), piece.begin(), piece.end());
            begin = end;
          }
          expect_close(found, expected, 1e-2);
        }
      }
    }
  });
}

// Keys point along the queries in odd tokens and against them in even ones, and a window of two
// keys is seen: the output of an even token is the value before it as the page holds it. Only the
// first token of a block finds that in NVFP4.
TEST(PagedAttention, Nvfp4KeepsValuesToItsPrecision) {
  constexpr int64_t kLength = 40 * kPageTokens, kDim = 64;
  ThreadPool pool(2);
  for_each_isa([&] {
    Cache cache({1, 1, kDim}, KvType::kNVFP4, {kLength});
    for (int64_t t = 0; t < kLength; ++t) {
      std::fill_n(cache.row(0, t), kDim, 1.0f);
      std::fill_n(cache.row(0, t) + kDim, kDim, t % 2 == 0 ? -10.0f : 10.0f);
    }
    const std::vector<float> out = cache.step(pool, 0, 0, kLength, 2);
    double error = 0.0, size = 0.0;
    for (int64_t t = 2; t < kLength; t += 2) {
      const bool packed = t % kPageTokens == 0 && t > kPageTokens;
      for (int64_t i = 0; i < kDim; ++i) {
        const float value = bf16_to_float(float_to_bf16(cache.row(0, t - 1)[2 * kDim + i]));
        const float found = out[size_t(t * kDim + i)];
        if (!packed) {
          ASSERT_EQ(found, value) << t;
        } else {
          error += std::pow(double(found) - double(value), 2);
          size += std::pow(double(value), 2);
        }
      }
    }
    EXPECT_NEAR(error / size, .0067, .0007);  // the sweep rule's
  });
}

// Keys with one slowly turning channel and a common part that are large in every token, as models
// have them: what the softmax sees of the rest must not suffer.
TEST(PagedAttention, Nvfp4KeepsKeysBesideAChannelThatIsLarge) {
  constexpr int64_t kLength = 512, kDim = 64;
  ThreadPool pool(2);
  const auto outputs = [&](KvType type) {
    Cache cache({1, 1, kDim}, type, {kLength});
    for (int64_t t = 0; t < kLength; ++t) {
      float* q = cache.row(0, t);
      float* k = q + kDim;
      q[30] *= 0.1f;
      q[62] *= 0.1f;
      k[30] += 30.0f;
      for (int64_t i = 0; i < kDim; ++i) k[i] += 2.0f * std::sin(float(i));
    }
    return cache.step(pool, 0, 0, kLength, 0);
  };
  for_each_isa([&] {
    const std::vector<float> packed = outputs(KvType::kNVFP4), exact = outputs(KvType::kBF16);
    double error = 0.0, size = 0.0;
    for (size_t i = size_t(256 * kDim); i < exact.size(); ++i) {
      error += std::pow(double(packed[i]) - double(exact[i]), 2);
      size += std::pow(double(exact[i]), 2);
    }
    EXPECT_LT(std::sqrt(error / size), 0.12);
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
