// What the kernels of block scores share: sequences, what a row sees, block rows, operand types.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/common/cuda/launch.cuh"
#include "kernels/xattn/cuda/score_plan.h"

namespace longspur::kernels::xattn::cuda {

inline constexpr int kRowsOfBlock = int(kQueryBlock);

__device__ inline float value(float x) { return x; }
__device__ inline float value(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ inline float value(__half x) { return __half2float(x); }
template <class T>
__device__ inline T rounded(float x) {
  if constexpr (std::is_same_v<T, float>) return x;
  if constexpr (std::is_same_v<T, __half>) return __float2half_rn(x);
  if constexpr (std::is_same_v<T, __nv_bfloat16>) return __float2bfloat16_rn(x);
}

__device__ inline float negative_infinity() { return __int_as_float(int(0xff800000u)); }

// 2^x; results below 2^-126 are zero.
__device__ inline float power_of_two(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

struct Sequence {
  int q0, n, k0, m;  // first query, queries, first key, keys

  __device__ static Sequence of(const ScorePlan& p, int b) {
    const int q0 = p.cu_q[b], k0 = p.cu_k[b];
    return {q0, p.cu_q[b + 1] - q0, k0, p.cu_k[b + 1] - k0};
  }
  // Keys that query `row` sees.
  __device__ int visible(int row, bool causal) const {
    return causal ? min(max(m - n + row + 1, 0), m) : m;
  }
  __device__ int last_row(int block) const {
    return min(block * kRowsOfBlock + kRowsOfBlock, n) - 1;
  }
};

__host__ __device__ inline int div_up(int a, int b) { return (a + b - 1) / b; }

// Groups of a sequence that lie in whole groups of the tensor, which is all that copies of groups
// reach; of the others there are at most two, at the end of the last sequence.
__device__ inline int whole_groups(int first, int count, int64_t total, int size) {
  return min(count, max(int(total / size) * size - first, 0)) / size;
}

// Columns that row r of a term sees in query block i; the outlier's depend on which query it is.
__device__ inline int row_limit(
    const ScorePlan& p, const TermPlan& term, const Sequence& s, int i, int r, int outlier = 0) {
  if (i * kRowsOfBlock >= s.n) return 0;
  const int first = i * kRowsOfBlock + r * term.size, last = min(first + term.size, s.n) - 1;
  switch (term.term) {
    case Term::kAntidiagonal:
    case Term::kDiagonal:
      return first >= s.n ? 0 : div_up(s.visible(last, p.causal), term.size);
    case Term::kPooled: {
      if (term.size <= kRowsOfBlock) return first >= s.n ? 0 : s.visible(last, p.causal);
      const int end = i * kRowsOfBlock / term.size * term.size + term.size;
      const int own = s.visible(s.last_row(i), p.causal);
      return min(s.visible(min(end, s.n) - 1, p.causal), div_up(own, p.block) * p.block);
    }
    case Term::kSampled:
      return first >= s.n ? 0 : s.visible(min(first + term.size / 2, s.n - 1), p.causal);
    case Term::kOutlier:
      return s.visible(outlier, p.causal);
    default:
      return div_up(s.visible(s.last_row(i), p.causal), p.block);
  }
}

// Columns a key block has.
__device__ inline int columns_of_block(const ScorePlan& p, const TermPlan& term) {
  if (term.term == Term::kBlockMean) return 1;
  const bool strided = term.term == Term::kAntidiagonal || term.term == Term::kDiagonal;
  return strided ? p.block / term.size : p.block;
}

// A block row, its query block, head and sequence.
struct BlockRow {
  int b, g, h, i;  // i: of the sequence
  int64_t index;

  __device__ BlockRow(const ScorePlan& p, int64_t row) : index(row) {
    h = int(row % p.group);
    i = int(row / p.group % p.blocks) + p.first_block;
    const int64_t bg = row / p.group / p.blocks;
    g = int(bg % p.kv_heads);
    b = int(bg / p.kv_heads);
    h += g * p.group;
  }
};

template <class T>
__device__ inline const T* query(const ScorePlan& p, const Sequence& s, int h, int row) {
  return static_cast<const T*>(p.q) + int64_t(s.q0 + row) * p.q_token + int64_t(h) * p.q_head;
}
template <class T>
__device__ inline const T* key(const ScorePlan& p, const Sequence& s, int g, int row) {
  return static_cast<const T*>(p.k) + int64_t(s.k0 + row) * p.k_token + int64_t(g) * p.k_head;
}

// Calls f with a value of the operands' type.
template <class F>
cudaError_t visit(Type type, F f) {
  switch (type) {
    case Type::kBF16:
      return f(__nv_bfloat16{});
    case Type::kF16:
      return f(__half{});
    default:
      return f(float{});
  }
}

}  // namespace longspur::kernels::xattn::cuda
