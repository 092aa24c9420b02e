// A backward call on a device, and the gradients of the same inputs in double.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <random>
#include <string>
#include <type_traits>
#include <vector>

#include "kernels/attention/varlen.h"
#include "kernels/block_sparse/cuda/block_sparse_cuda.h"
#include "kernels/common/cuda/device_test.cuh"

namespace longspur::kernels::block_sparse::cuda {

using bf16 = __nv_bfloat16;
using testing::DeviceArray;

enum class Picks { kDense, kRandom, kFull, kNone, kDiagonal, kFirst, kEmptyRows, kEmptyColumns };

struct Case {
  std::vector<int> queries, keys;  // of the sequences
  int heads = 2, kv_heads = 1, dim = 128;
  bool causal = true;
  Picks blocks = Picks::kRandom;
  int block_size = 128, mask_heads = 2;
  bool grad_lse = true, deterministic = false;
  int pad = 0;               // elements between heads
  bool heads_first = false;  // [heads, T, D] instead of [T, heads, D]
  int spoilt = -1;           // sequence whose inputs are NaN
  unsigned seed = 1;
};

inline std::string name_of(const Case& c) {
  std::string name;
  for (size_t b = 0; b < c.queries.size(); ++b)
    name += std::to_string(c.queries[b]) + "x" + std::to_string(c.keys[b]) + " ";
  return name + "heads " + std::to_string(c.heads) + "/" + std::to_string(c.kv_heads) + " dim " +
         std::to_string(c.dim) + " causal " + std::to_string(c.causal) + " mask " +
         std::to_string(int(c.blocks)) + " of " + std::to_string(c.block_size) + " heads " +
         std::to_string(c.mask_heads) + " deterministic " + std::to_string(c.deterministic) +
         " pad " + std::to_string(c.pad) + " seed " + std::to_string(c.seed);
}

template <class T>
constexpr Type kTypeOf = sizeof(T) == 4            ? Type::kF32
                         : std::is_same_v<T, bf16> ? Type::kBF16
                                                   : Type::kF16;

inline std::vector<int32_t> starts(const std::vector<int>& lengths) {
  std::vector<int32_t> result{0};
  for (const int n : lengths) result.push_back(result.back() + n);
  return result;
}

// [T, heads, D] packed, of values that T holds; and its place at the strides of a case.
struct Packed {
  int64_t tokens, heads, dim;
  std::vector<double> data;

  template <class T>
  static Packed random(int64_t tokens, int64_t heads, int64_t dim, unsigned seed) {
    Packed x{tokens, heads, dim, {}};
    for (const float value : testing::random_floats(size_t(tokens * heads * dim), seed))
      x.data.push_back(double(float(T(value))));
    return x;
  }
  double* row(int64_t token, int64_t head) { return data.data() + (token * heads + head) * dim; }
  const double* row(int64_t token, int64_t head) const {
    return data.data() + (token * heads + head) * dim;
  }
};

struct Layout {
  int64_t token_stride, head_stride;
  Layout(const Case& c, int64_t tokens, int64_t heads) {
    const int64_t row = c.dim + c.pad;
    token_stride = c.heads_first ? row : row * heads;
    head_stride = c.heads_first ? row * tokens : row;
  }
  int64_t at(int64_t t, int64_t h, int64_t d) const {
    return t * token_stride + h * head_stride + d;
  }
};

// With NaN wherever no element is.
template <class T>
std::vector<T> place(const Case& c, const Packed& x) {
  const Layout layout(c, x.tokens, x.heads);
  std::vector<T> to(size_t(x.tokens * x.heads * (c.dim + c.pad)), T(NAN));
  for (int64_t t = 0; t < x.tokens; ++t)
    for (int64_t h = 0; h < x.heads; ++h)
      for (int64_t d = 0; d < x.dim; ++d) to[size_t(layout.at(t, h, d))] = T(float(x.row(t, h)[d]));
  return to;
}
template <class T>
std::vector<double> take(const Case& c, const std::vector<T>& from, int64_t tokens, int64_t heads) {
  const Layout layout(c, tokens, heads);
  std::vector<double> x;
  for (int64_t t = 0; t < tokens; ++t)
    for (int64_t h = 0; h < heads; ++h)
      for (int64_t d = 0; d < c.dim; ++d)
        x.push_back(double(float(from[size_t(layout.at(t, h, d))])));
  return x;
}

// dq, dk, dv, packed.
struct Gradients {
  std::vector<double> x[3];
};

template <class T>
class Problem {
 public:
  explicit Problem(const Case& c)
      : c_(c),
        cu_q_(starts(c.queries)),
        cu_k_(starts(c.keys)),
        q_(Packed::random<T>(cu_q_.back(), c.heads, c.dim, c.seed * 5)),
        k_(Packed::random<T>(cu_k_.back(), c.kv_heads, c.dim, c.seed * 5 + 1)),
        v_(Packed::random<T>(cu_k_.back(), c.kv_heads, c.dim, c.seed * 5 + 2)),
        grad_out_(Packed::random<T>(cu_q_.back(), c.heads, c.dim, c.seed * 5 + 3)),
        out_(q_),
        lse_(size_t(cu_q_.back() * c.heads)) {
    for (const float g : testing::random_floats(lse_.size(), c.seed * 5 + 4))
      grad_lse_.push_back(double(g));
    make_mask();
    attention::varlen_forward_ref({host_shape(),
                                   rows(q_),
                                   rows(k_),
                                   rows(v_),
                                   {out_.data.data(), q_.heads * q_.dim, q_.dim},
                                   lse_.data(),
                                   cu_q_.back()},
                                  mask_);
    if (c.spoilt >= 0) spoil(size_t(c.spoilt));
  }

  Gradients expected() const {
    Gradients g = empty();
    attention::varlen_backward_ref(
        {host_shape(), rows(q_), rows(k_), rows(v_), rows(out_), rows(grad_out_), lse_.data(),
         cu_q_.back(), c_.grad_lse ? grad_lse_.data() : nullptr, cu_q_.back(),
         to_rows(g.x[0], c_.heads), to_rows(g.x[1], c_.kv_heads), to_rows(g.x[2], c_.kv_heads)},
        mask_);
    return g;
  }

  // What 16-bit probabilities, gradients of scores and outputs cost, everything else in double.
  Gradients naive() const {
    Gradients g = empty();
    const auto round = [](double x) { return double(float(T(float(x)))); };
    const int64_t group = c_.heads / c_.kv_heads;
    const double scale = host_shape().scale;
    each_pair([&](int64_t b, int64_t h, int64_t i, int64_t j) {
      const int64_t tq = cu_q_[size_t(b)] + i, tk = cu_k_[size_t(b)] + j;
      const double *q = q_.row(tq, h), *k = k_.row(tk, h / group), *v = v_.row(tk, h / group);
      const double *out = out_.row(tq, h), *go = grad_out_.row(tq, h);
      double s = 0, dp = 0;
      for (int64_t d = 0; d < c_.dim; ++d) {
        s += q[d] * k[d];
        dp += go[d] * (v[d] - round(out[d]));
      }
      const int64_t row = h * cu_q_.back() + tq;
      const double p = std::exp(scale * s - lse_[size_t(row)]);
      if (c_.grad_lse) dp += grad_lse_[size_t(row)];
      const double ds = round(p * dp);
      double* dq = g.x[0].data() + (tq * c_.heads + h) * c_.dim;
      double* dk = g.x[1].data() + (tk * c_.kv_heads + h / group) * c_.dim;
      double* dv = g.x[2].data() + (tk * c_.kv_heads + h / group) * c_.dim;
      for (int64_t d = 0; d < c_.dim; ++d) {
        dq[d] += scale * ds * k[d];
        dk[d] += scale * ds * q[d];
        dv[d] += round(p) * go[d];
      }
    });
    for (auto& x : g.x)
      for (double& value : x) value = round(value);
    return g;
  }

  // On the device, from poisoned results and a poisoned workspace of exactly the size asked for.
  Gradients run(bool* fast = nullptr) const {
    const auto floats = [](const std::vector<double>& x) {
      return std::vector<float>(x.begin(), x.end());
    };
    const DeviceArray<int32_t> cu_q(cu_q_), cu_k(cu_k_);
    const DeviceArray<T> q(place<T>(c_, q_)), k(place<T>(c_, k_)), v(place<T>(c_, v_)),
        out(place<T>(c_, out_)), grad_out(place<T>(c_, grad_out_));
    const DeviceArray<float> lse(floats(lse_)), grad_lse(floats(grad_lse_));
    const DeviceArray<uint32_t> words(words_);
    const std::vector<T> query_poison(size_t(cu_q_.back()) * c_.heads * (c_.dim + c_.pad), T(NAN));
    const std::vector<T> key_poison(size_t(cu_k_.back()) * c_.kv_heads * (c_.dim + c_.pad), T(NAN));
    const DeviceArray<T> dq(query_poison), dk(key_poison), dv(key_poison);

    BackwardArgs a;
    const attention::VarlenShape host = host_shape();
    a.shape = {cu_q.get(),          cu_k.get(),       host.batch,   host.heads,
               host.kv_heads,       host.head_dim,    cu_q_.back(), cu_k_.back(),
               longest(c_.queries), longest(c_.keys), c_.causal,    float(host.scale),
               kTypeOf<T>};
    const Layout ql(c_, cu_q_.back(), c_.heads), kl(c_, cu_k_.back(), c_.kv_heads);
    const auto at = [](const DeviceArray<T>& x, const Layout& l) {
      return ConstRows{x.get(), l.token_stride, l.head_stride};
    };
    const auto to = [](const DeviceArray<T>& x, const Layout& l) {
      return Rows{x.get(), l.token_stride, l.head_stride};
    };
    a.q = at(q, ql);
    a.k = at(k, kl);
    a.v = at(v, kl);
    a.out = at(out, ql);
    a.grad_out = at(grad_out, ql);
    a.lse = lse.get();
    a.lse_stride = a.grad_lse_stride = cu_q_.back();
    a.grad_lse = c_.grad_lse ? grad_lse.get() : nullptr;
    a.dq = to(dq, ql);
    a.dk = to(dk, kl);
    a.dv = to(dv, kl);
    a.mask = mask_;
    if (c_.blocks != Picks::kDense) a.mask.words = words.get();
    a.deterministic = c_.deterministic;
    const DeviceArray<uint8_t> workspace(
        std::vector<uint8_t>(size_t(backward_workspace_bytes(a)), 0xff));
    a.workspace = workspace.get();
    if (fast != nullptr) *fast = backward_workspace_bytes(a) > 0;
    EXPECT_EQ(backward(a, nullptr), nullptr) << name_of(c_);
    return {{take(c_, dq.download(), cu_q_.back(), c_.heads),
             take(c_, dk.download(), cu_k_.back(), c_.kv_heads),
             take(c_, dv.download(), cu_k_.back(), c_.kv_heads)}};
  }

  // Tokens of all sequences but the spoilt one.
  std::vector<double> sound(const std::vector<double>& x, bool of_queries) const {
    if (c_.spoilt < 0) return x;
    const auto& cu = of_queries ? cu_q_ : cu_k_;
    const int64_t row = (of_queries ? c_.heads : c_.kv_heads) * c_.dim;
    std::vector<double> kept = x;
    kept.erase(kept.begin() + cu[size_t(c_.spoilt)] * row,
               kept.begin() + cu[size_t(c_.spoilt) + 1] * row);
    return kept;
  }

 private:
  using HostRows = attention::ConstRows;
  static HostRows rows(const Packed& x) { return {x.data.data(), x.heads * x.dim, x.dim}; }
  attention::Rows to_rows(std::vector<double>& x, int64_t heads) const {
    return {x.data(), heads * c_.dim, c_.dim};
  }
  static int64_t longest(const std::vector<int>& lengths) {
    return *std::max_element(lengths.begin(), lengths.end());
  }
  Gradients empty() const {
    const std::vector<double> keys(k_.data.size());
    return {{std::vector<double>(q_.data.size()), keys, keys}};
  }

  attention::VarlenShape host_shape() const {
    return {cu_q_.data(),
            cu_k_.data(),
            int64_t(c_.queries.size()),
            c_.heads,
            c_.kv_heads,
            c_.dim,
            c_.causal,
            double(float(1 / std::sqrt(double(c_.dim)))),
            DType::kF64};
  }

  void each_pair(const std::function<void(int64_t, int64_t, int64_t, int64_t)>& visit) const {
    for (int64_t b = 0; b < int64_t(c_.queries.size()); ++b) {
      const int64_t n = c_.queries[size_t(b)], m = c_.keys[size_t(b)];
      for (int64_t h = 0; h < c_.heads; ++h) {
        for (int64_t i = 0; i < n; ++i) {
          const int64_t end = c_.causal ? std::clamp<int64_t>(i + 1 + m - n, 0, m) : m;
          const uint32_t* row = mask_.words == nullptr
                                    ? nullptr
                                    : mask_.row(b, h / (c_.heads / c_.mask_heads), i / kQueryBlock);
          for (int64_t j = 0; j < end; ++j)
            if (row == nullptr || has_block(row, j / c_.block_size)) visit(b, h, i, j);
        }
      }
    }
  }

  void make_mask() {
    if (c_.blocks == Picks::kDense) return;
    const int64_t key_blocks = ceil_div(longest(c_.keys), int64_t{c_.block_size});
    mask_ = {nullptr, c_.block_size, c_.mask_heads,
             std::max<int64_t>(ceil_div(longest(c_.queries), kQueryBlock), 1),
             std::max<int64_t>(BlockMask::words_of(key_blocks), 4)};
    const int64_t rows = int64_t(c_.queries.size()) * mask_.heads * mask_.query_blocks;
    words_.assign(size_t(rows * mask_.row_words), 0u);
    std::mt19937 generator(c_.seed + 77);
    for (int64_t row = 0; row < rows; ++row)
      for (int64_t j = 0; j < mask_.row_words * 32; ++j)
        if (picks(generator, row, j))
          words_[size_t(row * mask_.row_words + j / 32)] |= 1u << (j % 32);
    mask_.words = words_.data();
  }
  bool picks(std::mt19937& generator, int64_t row, int64_t j) const {
    const int64_t i = row % mask_.query_blocks, b = row / mask_.query_blocks / mask_.heads;
    const VisibleBlocks seen =
        visible_blocks(i, c_.queries[size_t(b)], c_.keys[size_t(b)], c_.block_size, c_.causal);
    switch (c_.blocks) {
      case Picks::kDense:
      case Picks::kFull:
        return true;
      case Picks::kNone:
        return j >= seen.end;  // bits that must be ignored
      case Picks::kDiagonal:
        return j + 1 == seen.end;
      case Picks::kFirst:
        return j == 0;
      case Picks::kEmptyRows:
        return row % 3 != 0 && generator() % 4 == 0;
      case Picks::kEmptyColumns:
        return j % 3 == 1 && generator() % 2 == 0;
      case Picks::kRandom:
        break;
    }
    return generator() % 3 == 0;
  }

  void spoil(size_t b) {
    const auto fill = [](Packed& x, int64_t from, int64_t to) {
      std::fill(x.data.begin() + from * x.heads * x.dim, x.data.begin() + to * x.heads * x.dim,
                NAN);
    };
    for (Packed* x : {&q_, &out_, &grad_out_}) fill(*x, cu_q_[b], cu_q_[b + 1]);
    for (Packed* x : {&k_, &v_}) fill(*x, cu_k_[b], cu_k_[b + 1]);
  }

  Case c_;
  std::vector<int32_t> cu_q_, cu_k_;
  Packed q_, k_, v_, grad_out_, out_;
  std::vector<double> lse_, grad_lse_;  // [H, Tq]
  BlockMask mask_;
  std::vector<uint32_t> words_;
};

}  // namespace longspur::kernels::block_sparse::cuda
