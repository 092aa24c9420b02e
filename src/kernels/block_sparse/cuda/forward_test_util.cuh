// A forward call on a device and the same sums in double.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <string>
#include <type_traits>
#include <vector>

#include "kernels/block_sparse/cuda/block_sparse_cuda.h"
#include "kernels/common/cuda/device_test.cuh"

namespace longspur::kernels::block_sparse::cuda {

using bf16 = __nv_bfloat16;
using testing::DeviceArray;

enum class Blocks { kNull, kRandom, kFull, kNone, kDiagonal, kSomeRowsEmpty };

struct Case {
  std::vector<int> queries, keys;  // of the sequences
  int heads = 2, kv_heads = 1, dim = 128;
  bool causal = true;
  Blocks blocks = Blocks::kRandom;
  int block_size = 128, mask_heads = 2;
  float q_scale = 1.0f;
  int pad = 0;               // elements between heads, and between tokens
  bool heads_first = false;  // [heads, T, D] instead of [T, heads, D]
  bool paged = false;
  int nan_sequence = -1;  // whose q, k and v are NaN
  unsigned seed = 1;
};

inline std::string name_of(const Case& c) {
  std::string name;
  for (size_t b = 0; b < c.queries.size(); ++b)
    name += std::to_string(c.queries[b]) + "x" + std::to_string(c.keys[b]) + " ";
  return name + "heads " + std::to_string(c.heads) + "/" + std::to_string(c.kv_heads) + " dim " +
         std::to_string(c.dim) + " causal " + std::to_string(c.causal) + " mask " +
         std::to_string(int(c.blocks)) + " of " + std::to_string(c.block_size) + " heads " +
         std::to_string(c.mask_heads) + " q x " + std::to_string(c.q_scale) + " pad " +
         std::to_string(c.pad) + " paged " + std::to_string(c.paged);
}

template <class T>
float as_float(T x) {
  return float(x);
}

template <class T>
constexpr Type kTypeOf = sizeof(T) == 4            ? Type::kF32
                         : std::is_same_v<T, bf16> ? Type::kBF16
                                                   : Type::kF16;

// [T, heads, D] at strides, everything else NaN.
template <class T>
struct Tensor {
  int64_t tokens, heads, dim, token_stride, head_stride;
  std::vector<T> data;

  Tensor(int64_t t, int64_t h, const Case& c) : tokens(t), heads(h), dim(c.dim) {
    if (c.heads_first) {
      token_stride = dim + c.pad;
      head_stride = token_stride * std::max<int64_t>(t, 1) + c.pad;
    } else {
      head_stride = dim + c.pad;
      token_stride = head_stride * h + c.pad;
    }
    data.assign(size_t(t * token_stride + h * head_stride), T(NAN));
  }
  T& at(int64_t t, int64_t h, int64_t d) {
    return data[size_t(t * token_stride + h * head_stride + d)];
  }
  const T& at(int64_t t, int64_t h, int64_t d) const {
    return data[size_t(t * token_stride + h * head_stride + d)];
  }
  // Sums of four uniform numbers, of variance 1: much quicker to make than normal ones.
  void fill(unsigned seed, float scale) {
    uint64_t state = seed * 0x9e3779b97f4a7c15u + 1;
    for (int64_t t = 0; t < tokens; ++t) {
      for (int64_t h = 0; h < heads; ++h) {
        for (int64_t d = 0; d < dim; ++d) {
          state = state * 6364136223846793005u + 1442695040888963407u;
          int sum = 0;
          for (int byte = 4; byte < 8; ++byte) sum += int(state >> (byte * 8) & 255u);
          at(t, h, d) = T(float(sum - 510) / 147.8f * scale);
        }
      }
    }
  }
  void spoil(int64_t from, int64_t to) {
    for (int64_t t = from; t < to; ++t)
      for (int64_t h = 0; h < heads; ++h)
        for (int64_t d = 0; d < dim; ++d) at(t, h, d) = T(NAN);
  }
};

inline std::vector<int32_t> starts(const std::vector<int>& lengths) {
  std::vector<int32_t> result{0};
  for (const int n : lengths) result.push_back(result.back() + n);
  return result;
}

template <class T>
class Problem {
 public:
  explicit Problem(const Case& c)
      : c_(c),
        cu_q_(starts(c.queries)),
        cu_k_(starts(c.keys)),
        q_(cu_q_.back(), c.heads, c),
        k_(cu_k_.back(), c.kv_heads, c),
        v_(cu_k_.back(), c.kv_heads, c) {
    q_.fill(c.seed * 3, c.q_scale);
    k_.fill(c.seed * 3 + 1, 1.0f);
    v_.fill(c.seed * 3 + 2, 1.0f);
    if (c.nan_sequence >= 0) {
      const auto b = size_t(c.nan_sequence);
      q_.spoil(cu_q_[b], cu_q_[b + 1]);
      k_.spoil(cu_k_[b], cu_k_[b + 1]);
      v_.spoil(cu_k_[b], cu_k_[b + 1]);
    }
    make_mask();
  }

  struct Result {
    std::vector<T> out;  // with its strides
    std::vector<float> lse;
  };

  Result run(bool* fast = nullptr) const {
    const DeviceArray<int32_t> cu_q(cu_q_), cu_k(cu_k_), table(table_of());
    const DeviceArray<T> q(q_.data), k(k_.data), v(v_.data), pages(pages_of());
    const DeviceArray<uint32_t> words(words_);
    Tensor<T> poisoned(q_.tokens, q_.heads, c_);
    const DeviceArray<T> out(poisoned.data);
    const DeviceArray<float> lse(std::vector<float>(size_t(lse_stride() * c_.heads), NAN));
    const DeviceArray<uint8_t> workspace(std::vector<uint8_t>(64, 0xa5));
    ForwardArgs args;
    args.shape = shape();
    args.shape.cu_seqlens_q = cu_q.get();
    args.shape.cu_seqlens_k = cu_k.get();
    args.q = {q.get(), q_.token_stride, q_.head_stride};
    args.k = {k.get(), k_.token_stride, k_.head_stride};
    args.v = {v.get(), v_.token_stride, v_.head_stride};
    if (c_.paged) {
      args.k = args.v = {};
      args.paged = {pages.get(), int64_t(pages_of().size()) / (128 * c_.dim), table.get(),
                    max_blocks()};
    }
    args.out = {out.get(), q_.token_stride, q_.head_stride};
    args.lse = lse.get();
    args.lse_stride = lse_stride();
    args.mask = mask_;
    if (mask_.query_blocks > 0) args.mask.words = words.get();
    args.workspace = workspace.get();
    EXPECT_LE(forward_workspace_bytes(args), 64);
    if (fast != nullptr) *fast = forward_is_fast(args);
    EXPECT_EQ(forward(args, nullptr), nullptr);
    return {out.download(), lse.download()};
  }

  bool listed(size_t b, int64_t head, int64_t i, int64_t j) const {
    if (c_.blocks == Blocks::kNull) return true;
    const int64_t mask_head = head / (c_.heads / c_.mask_heads);
    BlockMask mask = mask_;
    mask.words = words_.data();
    return has_block(mask.row(int64_t(b), mask_head, i / kQueryBlock), j / c_.block_size);
  }

  // Compares a sample of the rows with double; everything must have been written, nothing else.
  void check(const Result& found, double out_bound, double lse_bound) const {
    const int64_t row_cost = int64_t(c_.heads) * cu_k_.back() * c_.dim;
    const int64_t step = std::max<int64_t>(1, cu_q_.back() * row_cost / 5'000'000) | 1;
    double error = 0, norm = 1e-30, worst_lse = 0;
    for (size_t b = 0; b < c_.queries.size(); ++b) {
      if (int(b) == c_.nan_sequence) continue;
      const int64_t last = c_.queries[b] - 1;
      for (int64_t i = 0; i <= last; i = i < last ? std::min(i + step, last) : last + 1) {
        for (int64_t h = 0; h < c_.heads; ++h) {
          std::vector<double> expected;
          const double lse = row_of(b, h, i, expected);
          const float found_lse = found.lse[size_t(h * lse_stride() + cu_q_[b] + i)];
          if (std::isinf(lse)) {
            EXPECT_EQ(found_lse, -INFINITY) << name_of(c_) << " row " << i;
          } else {
            worst_lse =
                std::max(worst_lse, std::fabs(double(found_lse) - lse) / (1 + std::fabs(lse)));
            EXPECT_FALSE(std::isnan(found_lse)) << name_of(c_) << " row " << i << " head " << h;
          }
          for (int64_t d = 0; d < c_.dim; ++d) {
            const double x = double(as_float(
                found.out[size_t((cu_q_[b] + i) * q_.token_stride + h * q_.head_stride + d)]));
            error += (x - expected[size_t(d)]) * (x - expected[size_t(d)]);
            norm += expected[size_t(d)] * expected[size_t(d)];
          }
        }
      }
    }
    EXPECT_LE(std::sqrt(error / norm), out_bound) << name_of(c_);
    EXPECT_LE(worst_lse, lse_bound) << name_of(c_);
    check_written(found);
  }

  void check_written(const Result& found) const {
    Tensor<T> outside(q_.tokens, q_.heads, c_);
    for (int64_t t = 0; t < q_.tokens; ++t)
      for (int64_t h = 0; h < q_.heads; ++h)
        for (int64_t d = 0; d < q_.dim; ++d) outside.at(t, h, d) = T(0.0f);
    size_t touched = 0;
    for (size_t i = 0; i < found.out.size(); ++i)
      touched += std::isnan(as_float(outside.data[i])) && !std::isnan(as_float(found.out[i]));
    EXPECT_EQ(touched, 0u) << name_of(c_);
  }

 private:
  int64_t lse_stride() const { return cu_q_.back() + 3; }
  int64_t max_blocks() const {
    return (*std::max_element(c_.keys.begin(), c_.keys.end()) + 63) / 64 + 2;
  }

  Shape shape() const {
    Shape s;
    s.batch = int64_t(c_.queries.size());
    s.heads = c_.heads;
    s.kv_heads = c_.kv_heads;
    s.head_dim = c_.dim;
    s.total_q = cu_q_.back();
    s.total_k = cu_k_.back();
    s.max_seqlen_q = *std::max_element(c_.queries.begin(), c_.queries.end());
    s.max_seqlen_k = *std::max_element(c_.keys.begin(), c_.keys.end());
    s.causal = c_.causal;
    s.scale = float(1 / std::sqrt(double(c_.dim)));
    s.type = kTypeOf<T>;
    return s;
  }

  void make_mask() {
    if (c_.blocks == Blocks::kNull) return;
    const Shape s = shape();
    const int64_t key_blocks = ceil_div(s.max_seqlen_k, int64_t{c_.block_size});
    mask_.block_size = c_.block_size;
    mask_.heads = c_.mask_heads;
    mask_.query_blocks = std::max<int64_t>(ceil_div(s.max_seqlen_q, kQueryBlock), 1);
    mask_.row_words = std::max<int64_t>(BlockMask::words_of(key_blocks), 4);
    words_.assign(size_t(s.batch * mask_.heads * mask_.query_blocks * mask_.row_words), 0u);
    std::mt19937 generator(c_.seed + 77);
    for (int64_t row = 0; row < int64_t(words_.size()) / mask_.row_words; ++row) {
      const int64_t i = row % mask_.query_blocks;
      const int64_t b = row / mask_.query_blocks / mask_.heads;
      uint32_t* words = words_.data() + row * mask_.row_words;
      for (int64_t j = 0; j < mask_.row_words * 32; ++j)
        if (picks(generator, row, i, j, b)) words[j / 32] |= 1u << (j % 32);
    }
  }
  bool picks(std::mt19937& generator, int64_t row, int64_t i, int64_t j, int64_t b) const {
    const VisibleBlocks seen =
        visible_blocks(i, c_.queries[size_t(b)], c_.keys[size_t(b)], c_.block_size, c_.causal);
    switch (c_.blocks) {
      case Blocks::kNull:
      case Blocks::kFull:
        return true;
      case Blocks::kNone:
        return j >= seen.end;  // ignored
      case Blocks::kDiagonal:
        return j + 1 == seen.end;
      case Blocks::kSomeRowsEmpty:
        return row % 3 != 0 && generator() % 4 == 0;
      case Blocks::kRandom:
        break;
    }
    return generator() % 3 == 0;
  }

  // Pages in an order of their own, with NaN where no token is.
  std::vector<T> pages_of() const {
    if (!c_.paged) return {};
    std::vector<T> pages(size_t(page_count()) * 128 * size_t(c_.dim), T(NAN));
    const auto table = table_of();
    for (size_t b = 0; b < c_.keys.size(); ++b) {
      for (int64_t g = 0; g < c_.kv_heads; ++g) {
        for (int64_t t = 0; t < c_.keys[b]; ++t) {
          const int64_t row = int64_t(b) * c_.kv_heads + g;
          const int64_t page = table[size_t(row * max_blocks() + t / 64)];
          T* to = pages.data() + (page * 128 + t % 64) * c_.dim;
          for (int64_t d = 0; d < c_.dim; ++d) {
            to[d] = k_.at(cu_k_[b] + t, g, d);
            to[64 * c_.dim + d] = v_.at(cu_k_[b] + t, g, d);
          }
        }
      }
    }
    return pages;
  }
  int64_t page_count() const { return int64_t(c_.keys.size()) * c_.kv_heads * max_blocks() + 1; }
  std::vector<int32_t> table_of() const {
    if (!c_.paged) return {};
    std::vector<int32_t> table(size_t(page_count() - 1), -1);
    const int64_t count = page_count();
    for (size_t b = 0; b < c_.keys.size(); ++b) {
      for (int64_t g = 0; g < c_.kv_heads; ++g) {
        const int64_t row = (int64_t(b) * c_.kv_heads + g) * max_blocks();
        for (int64_t i = 0; i < (c_.keys[b] + 63) / 64; ++i)
          table[size_t(row + i)] = int32_t(count - 1 - (row + i));
      }
    }
    return table;
  }

  double row_of(size_t b, int64_t h, int64_t i, std::vector<double>& out) const {
    const int64_t n = c_.queries[b], m = c_.keys[b], g = h / (c_.heads / c_.kv_heads);
    const double scale = double(shape().scale);
    std::vector<double> s(static_cast<size_t>(m), -INFINITY);
    double most = -INFINITY;
    const int64_t end = c_.causal ? std::min(m, i + m - n + 1) : m;
    for (int64_t j = 0; j < end; ++j) {
      if (!listed(b, h, i, j)) continue;
      double dot = 0;
      for (int64_t d = 0; d < c_.dim; ++d)
        dot += double(as_float(q_.at(cu_q_[b] + i, h, d))) *
               double(as_float(k_.at(cu_k_[b] + j, g, d)));
      s[size_t(j)] = dot * scale;
      most = std::max(most, s[size_t(j)]);
    }
    out.assign(size_t(c_.dim), 0.0);
    if (most == -INFINITY) return most;
    double sum = 0;
    for (int64_t j = 0; j < end; ++j) {
      const double p = std::exp(s[size_t(j)] - most);
      if (p == 0) continue;
      sum += p;
      for (int64_t d = 0; d < c_.dim; ++d)
        out[size_t(d)] += p * double(as_float(v_.at(cu_k_[b] + j, g, d)));
    }
    for (double& x : out) x /= sum;
    return most + std::log(sum);
  }

  Case c_;
  std::vector<int32_t> cu_q_, cu_k_;
  Tensor<T> q_, k_, v_;
  BlockMask mask_;
  std::vector<uint32_t> words_;
};

}  // namespace longspur::kernels::block_sparse::cuda
