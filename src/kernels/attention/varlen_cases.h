// Problems and results of attention over packed sequences, shared by the tests of this family and
// of kernels/block_sparse.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <ostream>
#include <string>
#include <vector>

#include "base/dtype.h"
#include "base/error.h"
#include "base/half.h"
#include "base/rng.h"
#include "kernels/attention/paged.h"
#include "kernels/attention/varlen.h"

namespace longspur::kernels::attention {

inline constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct Case {
  std::vector<int32_t> queries, keys;  // lengths of the sequences
  int64_t heads, kv_heads, dim;
  bool causal;
  double scale;  // 0: 1 / sqrt(D)
  DType dtype = DType::kF32;
};

inline std::ostream& operator<<(std::ostream& out, const Case& c) {
  return out << dtype_info(c.dtype).name << " H " << c.heads << " G " << c.kv_heads << " D "
             << c.dim << (c.causal ? " causal" : " full") << " scale " << c.scale << " sequences "
             << c.queries.size();
}

inline std::vector<int32_t> cumulative(const std::vector<int32_t>& lengths) {
  std::vector<int32_t> begins = {0};
  for (const int32_t n : lengths) begins.push_back(begins.back() + n);
  return begins;
}

inline size_t element_bytes(DType dtype) { return size_t(dtype_info(dtype).bytes); }

inline void put(std::byte* to, DType dtype, size_t i, float x) {
  if (dtype == DType::kF32) reinterpret_cast<float*>(to)[i] = x;
  if (dtype == DType::kBF16) reinterpret_cast<uint16_t*>(to)[i] = float_to_bf16(x);
  if (dtype == DType::kF16) reinterpret_cast<uint16_t*>(to)[i] = float_to_fp16(x);
}
inline float get(const std::byte* from, DType dtype, size_t i) {
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

inline VarlenForwardArgs forward_args(const Problem& p, Results& r) {
  return {p.shape,      p.q.rows(), p.k.rows(), p.v.rows(), r.out.mutable_rows(),
          r.lse.data(), p.queries()};
}
inline VarlenBackwardArgs backward_args(const Problem& p, Results& r) {
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

// Root mean square of the difference over that of the reference; 0 when both are all zero.
inline double distance(const Operand& found, const Operand& expected) {
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

}  // namespace longspur::kernels::attention
