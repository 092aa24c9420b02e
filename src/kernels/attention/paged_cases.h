// Sequences in the paged cache and their attention, shared by the tests of this family.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "base/aligned_buffer.h"
#include "base/error.h"
#include "base/half.h"
#include "base/rng.h"
#include "base/shape.h"
#include "base/thread_pool.h"
#include "kernels/attention/nvfp4_page.h"
#include "kernels/attention/paged.h"
#include "kernels/attention/rope.h"
#include "kernels/attention/tile.h"

namespace longspur::kernels::attention {

inline constexpr const char* kIsas[] = {"avx512bf16", "avx512", "avx2", "portable"};

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

inline float normal(uint64_t seed, uint64_t index) {
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
    appended_ = AlignedBuffer(pool_.size());
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
  // Of every call from now on.
  void use_mask(const PagedMask* mask) { mask_ = mask; }
  // Log-sum-exps of the last call, [T, H].
  const std::vector<float>& lse() const { return lse_; }
  int64_t heads() const { return heads_.q; }

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
    const AttentionArgs args = arguments(rows, out, window, cu_seqlens.back());
    AlignedBuffer workspace(size_t(workspace_bytes(shape, heads_.q, paged, pool.size(), mask_)));
    pool.run([&](Team& team) { rope_append(team, append, shape, paged); });
    std::memcpy(appended_.data(), pool_.data(), pool_.size());
    pool.run(
        [&](Team& team) { paged_attention(team, args, shape, paged, workspace.data(), mask_); });
    return out;
  }

  // The oracle for the rotated rows [begin, end) of sequence b.
  std::vector<float> reference(size_t b, int64_t begin, int64_t end, int64_t window) {
    std::vector<float> rows(row(b, begin), row(b, begin) + (end - begin) * width());
    for (int64_t t = 0; t < end - begin; ++t) rotate_row(rows.data() + t * width(), begin + t);
    std::vector<float> out(size_t((end - begin) * heads_.q * heads_.dim));
    const int32_t cu[2] = {0, int32_t(end - begin)};
    const int32_t length = int32_t(end);
    PagedKv paged = kv(b);
    paged.pool = appended_.data();
    paged_attention_ref(arguments(rows, out, window, end - begin), {1, cu, &length}, paged, mask_);
    return out;
  }

  float scale() const { return 1.0f / std::sqrt(float(heads_.dim)); }

 private:
  static int64_t blocks(int64_t length) { return ceil_div(length, kPageTokens); }

  AttentionArgs arguments(std::vector<float>& rows,
                          std::vector<float>& out,
                          int64_t window,
                          int64_t tokens) {
    lse_.assign(size_t(tokens * heads_.q), std::numeric_limits<float>::quiet_NaN());
    AttentionArgs args;
    args.lse = lse_.data();
    args.q = rows.data();
    args.ldq = width();
    args.out = out.data();
    args.ldo = heads_.q * heads_.dim;
    args.heads = heads_.q;
    args.scale = scale();
    args.window = window;
    return args;
  }

  // Rotates the heads of one row; for bf16 and NVFP4 pages rounds the queries as the kernels do, so
  // that the comparison is about everything else.
  void rotate_row(float* row, int64_t position) const {
    const int64_t half = heads_.dim / 2;
    for (int64_t h = 0; h < heads_.q + heads_.kv; ++h) {
      float* q = row + h * heads_.dim;
      for (int64_t i = 0; i < half; ++i) {
        const float c = rope_.cos[size_t(position * half + i)];
        const float s = rope_.sin[size_t(position * half + i)];
        const float a = q[i], b = q[i + half];
        q[i] = a * c - b * s;
        q[i + half] = b * c + a * s;
      }
      if (type_ == KvType::kNVFP4) rotate_heads(q, heads_.dim, heads_.dim);
      if (type_ == KvType::kF32 || h >= heads_.q) continue;
      const float factor = scale() * kLog2E;
      for (int64_t i = 0; i < heads_.dim; ++i)
        q[i] = bf16_to_float(float_to_bf16(q[i] * factor)) / factor;
    }
  }

  Heads heads_;
  KvType type_;
  std::vector<int64_t> lengths_;
  int64_t max_blocks_ = 0;
  AlignedBuffer pool_, appended_;  // appended: after the last call's rope_append
  std::vector<int32_t> table_;
  std::vector<std::vector<float>> qkv_;
  RopeParams rotary_;
  RopeTable rope_;
  const PagedMask* mask_ = nullptr;
  std::vector<float> lse_;
};

inline double tolerance(KvType type) { return type == KvType::kF32 ? 1e-5 : 0.02; }

inline void expect_close(const std::vector<float>& found,
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

inline constexpr Heads kShapes[] = {{9, 3, 64}, {4, 4, 128}, {7, 1, 80}, {6, 2, 18}, {50, 1, 16}};
inline constexpr KvType kTypes[] = {KvType::kF32, KvType::kBF16, KvType::kNVFP4};

inline bool accepts(KvType type, Heads heads) {
  return type != KvType::kNVFP4 || heads.dim % 16 == 0;
}

}  // namespace longspur::kernels::attention
