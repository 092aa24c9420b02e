// The rows of a chunk: their limits and, for terms against exact keys, the queries themselves; and
// the summaries of keys (means of blocks, squared norms).
#include <cuda_runtime.h>

#include "kernels/xattn/cuda/scores.cuh"

namespace longspur::kernels::xattn::cuda {

namespace {

constexpr int kThreads = 128, kWarps = kThreads / kWarp;
constexpr float kLog2E = 1.44269504088896341f;

template <class T, class X>
struct RowWriter {
  const ScorePlan& p;
  const BlockRow& row;
  const Sequence& s;
  float* scratch;  // 33 floats, then [D]

  __device__ X* x(int r) const {
    return static_cast<X*>(p.x) + (row.index * p.exact_rows + r) * p.dim;
  }
  __device__ void limit(const TermPlan& term, int r, int outlier = 0) const {
    if (threadIdx.x == 0)
      p.limits[row.index * p.rows + term.first + r] = row_limit(p, term, s, row.i, r, outlier);
  }

  // Mean of queries [begin, end) of channel d, and the sum of squares around it.
  __device__ float mean(int d, int begin, int end, float& squares) const {
    const T* q = query<T>(p, s, row.h, begin) + d;
    const float base = value(q[0]);  // squares are taken around a value near the mean
    float sum = 0, sum_squares = 0;
#pragma unroll 8
    for (int i = 0; i < end - begin; ++i) {
      const float x = value(q[int64_t(i) * p.q_token]) - base;
      sum += x;
      sum_squares = fmaf(x, x, sum_squares);
    }
    const float mean = sum / float(end - begin);
    squares = fmaxf(sum_squares - sum * mean, 0.0f);
    return base + mean;
  }

  __device__ void pooled(const TermPlan& term, int r) const {
    int begin = row.i * kRowsOfBlock + r * term.size;
    if (term.size > kRowsOfBlock) begin = row.i * kRowsOfBlock / term.size * term.size;
    const int end = min(begin + term.size, s.n);
    float squares = 0;
    for (int d = int(threadIdx.x); d < p.dim; d += kThreads) {
      float channel = 0;
      const float center = begin < end ? mean(d, begin, end, channel) : 0.0f;
      x(term.first + r)[d] = rounded<X>(center);
      squares += channel;
    }
    if (!p.has_bias) return;
    squares = block_sum(squares, scratch);
    __syncthreads();
    if (threadIdx.x != 0) return;
    const float variance = squares / (float(max(end - begin, 1)) * float(p.dim));
    p.bias[row.index * p.exact_rows + term.first + r] =
        term.bias ? 0.25f * variance * p.scale * p.scale * kLog2E : 0.0f;
  }

  __device__ void exact(const TermPlan& term, int r, int query_row) const {
    for (int d = int(threadIdx.x); d < p.dim; d += kThreads) {
      const float v = query_row < s.n ? value(query<T>(p, s, row.h, query_row)[d]) : 0.0f;
      x(term.first + r)[d] = rounded<X>(v);
    }
    if (p.has_bias && threadIdx.x == 0) p.bias[row.index * p.exact_rows + term.first + r] = 0;
  }

  // The query farthest from the mean of the block; every thread gets it.
  __device__ int outlier() const {
    __shared__ float best[kWarps];
    __shared__ int best_row[kWarps];
    const int begin = row.i * kRowsOfBlock, end = s.last_row(row.i) + 1;
    float* center = scratch + 33;
    for (int d = int(threadIdx.x); d < p.dim; d += kThreads) {
      float squares = 0;
      center[d] = mean(d, begin, end, squares);
    }
    __syncthreads();
    const int warp = int(threadIdx.x) / kWarp, lane = int(threadIdx.x) % kWarp;
    float farthest = -1;
    int at = begin;
    for (int i = begin + warp; i < end; i += kWarps) {
      const T* q = query<T>(p, s, row.h, i);
      float distance = 0;
      for (int d = lane; d < p.dim; d += kWarp) {
        const float x = value(q[d]) - center[d];
        distance = fmaf(x, x, distance);
      }
      distance = warp_sum(distance);
      if (distance > farthest) farthest = distance, at = i;
    }
    if (lane == 0) best[warp] = farthest, best_row[warp] = at;
    __syncthreads();
    at = best_row[0];
    farthest = best[0];
    for (int w = 1; w < kWarps; ++w) {
      if (best[w] > farthest || (best[w] == farthest && best_row[w] < at))
        farthest = best[w], at = best_row[w];
    }
    return at;
  }
};

template <class T, class X>
__global__ void __launch_bounds__(kThreads) rows_kernel(const ScorePlan p) {
  extern __shared__ float scratch[];
  wait_for_previous();
  const BlockRow row(p, blockIdx.x);
  const Sequence s = Sequence::of(p, row.b);
  const RowWriter<T, X> writer{p, row, s, scratch};
  const int begin = row.i * kRowsOfBlock;
  for (int t = 0; t < p.term_count; ++t) {
    const TermPlan& term = p.terms[t];
    if (term.term == Term::kOutlier && begin < s.n) {
      const int at = writer.outlier();
      writer.limit(term, 0, at);
      writer.exact(term, 0, at);
      continue;
    }
    for (int r = 0; r < term.rows; ++r) {
      writer.limit(term, r);
      if (term.term == Term::kPooled)
        writer.pooled(term, r);
      else if (term.term == Term::kSampled)
        writer.exact(term, r, min(begin + r * term.size + term.size / 2, max(s.n - 1, 0)));
      else if (term.term == Term::kOutlier)
        writer.exact(term, r, s.n);
    }
  }
  if (!p.has_block_mean || begin >= s.n) return;
  for (int d = int(threadIdx.x); d < p.dim; d += kThreads) {
    float squares = 0;
    p.q_means[row.index * p.dim + d] = writer.mean(d, begin, s.last_row(row.i) + 1, squares);
  }
}

// A block of keys: their mean, and their squared norms.
template <class T>
__global__ void __launch_bounds__(kThreads) keys_kernel(const ScorePlan p) {
  wait_for_previous();
  const int j = int(blockIdx.x), bg = int(blockIdx.y), g = bg % p.kv_heads;
  const Sequence s = Sequence::of(p, bg / p.kv_heads);
  const int begin = j * p.block, end = min(begin + p.block, s.m);
  if (begin >= end) return;
  if (p.has_bias) {
    const int warp = int(threadIdx.x) / kWarp, lane = int(threadIdx.x) % kWarp;
    for (int i = begin + warp; i < end; i += kWarps) {
      const T* k = key<T>(p, s, g, i);
      float norm = 0;
      for (int d = lane; d < p.dim; d += kWarp) norm = fmaf(value(k[d]), value(k[d]), norm);
      norm = warp_sum(norm);
      if (lane == 0) p.norms[int64_t(bg) * p.norm_pitch + i] = norm;
    }
  }
  if (!p.has_mean && !p.has_block_mean) return;
  for (int d = int(threadIdx.x); d < p.dim; d += kThreads) {
    const T* k = key<T>(p, s, g, begin) + d;
    float sum = 0;
#pragma unroll 8
    for (int i = 0; i < end - begin; ++i) sum += value(k[int64_t(i) * p.k_token]);
    const float mean = sum / float(end - begin);
    const int64_t at = (int64_t(bg) * p.key_blocks + j) * p.dim + d;
    p.key_means[at] = mean;
    if (p.fast && p.has_mean) static_cast<T*>(p.key_means16)[at] = rounded<T>(mean);
  }
}

}  // namespace

cudaError_t run_key_summaries(const ScorePlan& p, Type type, cudaStream_t stream) {
  if (!p.has_bias && !p.has_mean && !p.has_block_mean) return cudaSuccess;
  return visit(type, [&](auto t) {
    const dim3 grid(unsigned(p.key_blocks), unsigned(p.batch * p.kv_heads));
    launch_overlapped(keys_kernel<decltype(t)>, grid, dim3(kThreads), stream, p);
    return cudaGetLastError();
  });
}

cudaError_t run_rows(const ScorePlan& p, Type type, cudaStream_t stream) {
  return visit(type, [&](auto t) {
    using T = decltype(t);
    void (*kernel)(ScorePlan) = p.fast ? rows_kernel<T, T> : rows_kernel<T, float>;
    kernel<<<unsigned(p.block_rows()), kThreads, size_t(33 + p.dim) * 4, stream>>>(p);
    return cudaGetLastError();
  });
}

}  // namespace longspur::kernels::xattn::cuda
