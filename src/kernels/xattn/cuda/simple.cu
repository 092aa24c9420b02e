// Masses of any head size and type, in fp32; a warp a row and key block. Also the edges of the
// strided terms that the tensor cores' kernel leaves out, and block means.
#include <cuda_runtime.h>

#include <algorithm>

#include "kernels/xattn/cuda/scores.cuh"

namespace longspur::kernels::xattn::cuda {

namespace {

constexpr int kThreads = 256, kWarps = kThreads / kWarp;

// A sum of powers of two in one thread, as its largest exponent and the rest.
struct LogSum {
  float top = negative_infinity(), sum = 0;

  __device__ void add(float x) {
    if (x == negative_infinity()) return;
    const float higher = fmaxf(top, x);
    sum = sum * exp2f(top - higher) + exp2f(x - higher);
    top = higher;
  }
  // Over a warp: log2 of the sum.
  __device__ float log() const {
    const float highest = warp_max(top);
    if (highest == negative_infinity()) return isnan(warp_sum(sum)) ? warp_sum(sum) : highest;
    const float part = top == negative_infinity() ? sum : sum * exp2f(top - highest);
    return highest + log2f(warp_sum(part));
  }
};

template <class T>
__device__ float dot(const float* a, const T* b, int count) {
  float sum = 0;
#pragma unroll 4
  for (int d = 0; d < count; ++d) sum = fmaf(a[d], value(b[d]), sum);
  return sum;
}

template <class T>
__global__ void __launch_bounds__(kThreads) exact_kernel(const ScorePlan p) {
  wait_for_previous();
  const int64_t row = blockIdx.x;
  const int j = int(blockIdx.y) * kWarps + int(threadIdx.x) / kWarp,
            lane = int(threadIdx.x) % kWarp;
  const int r = int(row % p.exact_rows);
  const BlockRow at(p, row / p.exact_rows);
  const int limit = p.limits[at.index * p.rows + r];
  if (j * p.block >= limit) return;
  const Sequence s = Sequence::of(p, at.b);
  const float* x = static_cast<const float*>(p.x) + row * p.dim;
  const float bias = p.has_bias ? p.bias[row] : 0.0f;
  const float* norms = p.norms + int64_t(at.b * p.kv_heads + at.g) * p.norm_pitch;
  LogSum total;
  for (int c = j * p.block + lane; c < min((j + 1) * p.block, limit); c += kWarp) {
    const float logit = dot(x, key<T>(p, s, at.g, c), p.dim) * p.scale2;
    total.add(bias != 0.0f ? fmaf(bias, norms[c], logit) : logit);
  }
  const float mass = total.log();
  if (lane == 0) p.masses[(at.index * p.rows + r) * p.pitch + j] = mass;
}

// log2 of the mass of key block j for row r of a strided term, by a warp. The lanes share the
// products of a column where a block has fewer than 32.
template <class T>
__device__ float strided_mass(
    const ScorePlan& p, const TermPlan& term, const BlockRow& at, const Sequence& s, int r, int j) {
  const int lane = int(threadIdx.x) % kWarp, columns = p.block / term.size;
  const int lanes = max(kWarp / columns, 1);  // a column
  const int limit = p.limits[at.index * p.rows + term.first + r];
  const int row0 = at.i * kRowsOfBlock + r * term.size;
  const bool reversed = term.term == Term::kAntidiagonal;
  LogSum total;
  for (int c = j * columns + lane / lanes; c < (j + 1) * columns; c += kWarp / lanes) {
    float sum = 0;
    if (c < limit) {
      for (int i = lane % lanes; i < term.size; i += lanes) {
        const int row = row0 + (reversed ? term.size - 1 - i : i), column = c * term.size + i;
        if (row >= s.n || column >= s.m) continue;
        const T* q = query<T>(p, s, at.h, row);
        const T* k = key<T>(p, s, at.g, column);
        for (int d = 0; d < p.dim; ++d) sum = fmaf(value(q[d]), value(k[d]), sum);
      }
    }
    for (int offset = 1; offset < lanes; offset *= 2) sum += __shfl_xor_sync(~0u, sum, offset);
    if (c < limit && lane % lanes == 0) total.add(sum * p.scale2 / float(term.size));
  }
  return total.log();
}

enum class Part { kAll, kLastRows, kLastKeyBlocks };

template <class T, Part kPart>
__global__ void __launch_bounds__(kThreads) strided_kernel(const ScorePlan p, int index) {
  wait_for_previous();
  const TermPlan& term = p.terms[index];
  const int warp = int(threadIdx.x) / kWarp;
  int64_t row = blockIdx.x;
  int j = int(blockIdx.y) * kWarps + warp;
  if constexpr (kPart == Part::kLastKeyBlocks) row = row * kWarps + warp;
  if (row >= p.block_rows() * term.rows) return;
  const BlockRow at(p, row / term.rows);
  const Sequence s = Sequence::of(p, at.b);
  const int r = int(row % term.rows), limit = p.limits[at.index * p.rows + term.first + r];
  const int columns = p.block / term.size;
  if constexpr (kPart == Part::kLastRows) {
    const int group = at.i * (kRowsOfBlock / term.size) + r;
    if (group < whole_groups(s.q0, s.n, p.total_q, term.size)) return;
  }
  if constexpr (kPart == Part::kLastKeyBlocks) {
    const int whole = whole_groups(s.k0, s.m, p.total_k, term.size);
    if (limit <= whole) return;
    j = whole / columns + int(blockIdx.y);
  }
  if (j * columns >= limit) return;
  const float mass = strided_mass<T>(p, term, at, s, r, j);
  if (threadIdx.x % kWarp == 0) p.masses[(at.index * p.rows + term.first + r) * p.pitch + j] = mass;
}

unsigned key_block_grid(const ScorePlan& p) {
  return unsigned((p.key_blocks + kWarps - 1) / kWarps);
}

__global__ void __launch_bounds__(kThreads) block_mean_kernel(const ScorePlan p, int index) {
  wait_for_previous();
  const TermPlan& term = p.terms[index];
  const BlockRow at(p, blockIdx.x);
  const int limit = p.limits[at.index * p.rows + term.first];
  const float* x = p.q_means + at.index * p.dim;
  const int64_t bg = at.b * p.kv_heads + at.g;
  for (int j = int(threadIdx.x); j < limit; j += kThreads) {
    p.masses[(at.index * p.rows + term.first) * p.pitch + j] =
        p.scale2 * dot(x, p.key_means + (bg * p.key_blocks + j) * p.dim, p.dim);
  }
}

// Every query of a block row against the means: each row's sum first, then the mean of
// probabilities.
template <class T>
__global__ void __launch_bounds__(kThreads) mean_kernel(const ScorePlan p) {
  __shared__ float log_sums[kRowsOfBlock];
  wait_for_previous();
  const BlockRow at(p, blockIdx.x);
  const Sequence s = Sequence::of(p, at.b);
  const int warp = int(threadIdx.x) / kWarp, lane = int(threadIdx.x) % kWarp;
  const int row0 = at.i * kRowsOfBlock, rows = min(s.n - row0, kRowsOfBlock);
  if (rows <= 0) return;
  const float* means = p.key_means + int64_t(at.b * p.kv_heads + at.g) * p.key_blocks * p.dim;
  const auto logit = [&](int row, int j) {
    const T* q = query<T>(p, s, at.h, row0 + row);
    float sum = 0;
    for (int d = 0; d < p.dim; ++d) sum = fmaf(value(q[d]), means[int64_t(j) * p.dim + d], sum);
    return sum * p.scale2;
  };
  for (int row = warp; row < rows; row += kWarps) {
    const int seen = div_up(s.visible(row0 + row, p.causal), p.block);
    LogSum total;
    for (int j = lane; j < seen; j += kWarp) total.add(logit(row, j));
    const float sum = total.log();
    if (lane == 0) log_sums[row] = sum;
  }
  __syncthreads();
  int live = 0;
  for (int row = 0; row < rows; ++row) live += s.visible(row0 + row, p.causal) > 0 ? 1 : 0;
  const int seen_last = div_up(s.visible(row0 + rows - 1, p.causal), p.block);
  for (int j = int(threadIdx.x); j < seen_last; j += kThreads) {
    float sum = 0;
    for (int row = 0; row < rows; ++row) {
      if (j < div_up(s.visible(row0 + row, p.causal), p.block))
        sum += exp2f(logit(row, j) - log_sums[row]);
    }
    p.mean_scores[at.index * p.pitch + j] = sum / float(max(live, 1));
  }
}

}  // namespace

cudaError_t run_simple_masses(const ScorePlan& p, Type type, cudaStream_t stream) {
  return visit(type, [&](auto t) {
    using T = decltype(t);
    if (p.exact_rows > 0) {
      const dim3 grid(unsigned(p.block_rows() * p.exact_rows), key_block_grid(p));
      exact_kernel<T><<<grid, kThreads, 0, stream>>>(p);
    }
    for (int i = 0; i < p.term_count; ++i) {
      if (p.terms[i].term != Term::kAntidiagonal && p.terms[i].term != Term::kDiagonal) continue;
      const dim3 grid(unsigned(p.block_rows() * p.terms[i].rows), key_block_grid(p));
      strided_kernel<T, Part::kAll><<<grid, kThreads, 0, stream>>>(p, i);
    }
    return cudaGetLastError();
  });
}

cudaError_t run_strided_edges(const ScorePlan& p, int term, Type type, cudaStream_t stream) {
  const int size = p.terms[term].size;
  // With one sequence its length is known here, and most often whole.
  if (p.batch == 1 && p.total_q % size == 0 && p.total_k % size == 0) return cudaSuccess;
  return visit(type, [&](auto t) {
    using T = decltype(t);
    const int64_t rows = p.block_rows() * p.terms[term].rows;
    strided_kernel<T, Part::kLastRows>
        <<<dim3(unsigned(rows), key_block_grid(p)), kThreads, 0, stream>>>(p, term);
    strided_kernel<T, Part::kLastKeyBlocks>
        <<<dim3(unsigned((rows + kWarps - 1) / kWarps), 2), kThreads, 0, stream>>>(p, term);
    return cudaGetLastError();
  });
}

cudaError_t run_block_means(const ScorePlan& p, cudaStream_t stream) {
  for (int i = 0; i < p.term_count; ++i) {
    if (p.terms[i].term == Term::kBlockMean)
      block_mean_kernel<<<unsigned(p.block_rows()), kThreads, 0, stream>>>(p, i);
  }
  return cudaGetLastError();
}

cudaError_t run_simple_mean(const ScorePlan& p, Type type, cudaStream_t stream) {
  return visit(type, [&](auto t) {
    mean_kernel<decltype(t)><<<unsigned(p.block_rows()), kThreads, 0, stream>>>(p);
    return cudaGetLastError();
  });
}

}  // namespace longspur::kernels::xattn::cuda
