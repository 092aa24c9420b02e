// From masses of key blocks to scores: each row's softmax, the mean over a term's live rows, the
// weighted sum of terms, the mean over the heads of a KV group.
#include <cuda_runtime.h>

#include "kernels/xattn/cuda/scores.cuh"

namespace longspur::kernels::xattn::cuda {

namespace {

constexpr int kThreads = 256, kWarps = kThreads / kWarp;

// log2 of the sum of 2^x over [0, count), to every lane. Many loads are under way at once.
__device__ float log_sum(const float* x, int count, int lane) {
  constexpr int kLoads = 16;
  float top = negative_infinity(), sum = 0;
  for (int base = lane; base < count; base += kLoads * kWarp) {
    float v[kLoads], highest = top;
#pragma unroll
    for (int i = 0; i < kLoads; ++i)
      v[i] = base + i * kWarp < count ? x[base + i * kWarp] : negative_infinity();
#pragma unroll
    for (int i = 0; i < kLoads; ++i) highest = fmaxf(highest, v[i]);
    const float reference = highest == negative_infinity() ? 0.0f : highest;
    sum *= power_of_two(top - reference);
#pragma unroll
    for (int i = 0; i < kLoads; ++i) sum += power_of_two(v[i] - reference);
    top = highest;
  }
  float highest = warp_max(top);
  if (highest == negative_infinity()) highest = 0;
  // A lane without a value has no top, but its sum may be NaN.
  const float part = sum == 0 ? 0.0f : sum * power_of_two(fmaxf(top, highest - 200.0f) - highest);
  return highest + log2f(warp_sum(part));
}

// Loads of unrolled loops run ahead of the last row.
__host__ __device__ int padded_rows(const ScorePlan& p) { return p.rows / 8 * 8 + 16; }

// The rows of a block row as combine_kernel needs them.
struct RowSums {
  float* log_sums;  // [rows]
  float* weights;   // [rows]: of the term by its live rows; 0: not live
  int* key_blocks;  // [rows]
};

__device__ void sum_rows(const ScorePlan& p, int64_t block_row, const RowSums& to) {
  const int warp = int(threadIdx.x) / kWarp, lane = int(threadIdx.x) % kWarp;
  const int32_t* limits = p.limits + block_row * p.rows;
  for (int t = 0; t < p.term_count; ++t) {
    const TermPlan& term = p.terms[t];
    const int columns = columns_of_block(p, term);
    int live = 0;
    for (int r = lane; r < term.rows; r += kWarp) live += limits[term.first + r] > 0 ? 1 : 0;
    live = __reduce_add_sync(~0u, live);
    for (int r = term.first + warp; r < term.first + term.rows; r += kWarps) {
      const int count = div_up(limits[r], columns);
      const float total =
          count == 0 ? 0.0f : log_sum(p.masses + (block_row * p.rows + r) * p.pitch, count, lane);
      if (lane != 0) continue;
      to.log_sums[r] = total;
      to.weights[r] = count == 0 ? 0.0f : term.weight / float(live);
      to.key_blocks[r] = count;
    }
  }
}

__global__ void __launch_bounds__(kThreads) combine_kernel(const ScorePlan p) {
  extern __shared__ float shared[];
  wait_for_previous();
  const int rows = padded_rows(p);
  const RowSums sums{shared, shared + rows, reinterpret_cast<int*>(shared + 2 * rows)};
  const int heads_a_score = p.heads / p.score_heads;
  const int64_t out = blockIdx.x;  // (b score_heads + head) blocks + i
  const int i = int(out % p.blocks), head = int(out / p.blocks % p.score_heads);
  const int b = int(out / p.blocks / p.score_heads);
  const Sequence s = Sequence::of(p, b);
  const int row0 = (p.first_block + i) * kRowsOfBlock;
  const int seen =
      row0 < s.n ? div_up(s.visible(s.last_row(p.first_block + i), p.causal), p.block) : 0;
  float* scores =
      p.scores +
      ((int64_t(b) * p.score_heads + head) * p.query_blocks + p.first_block + i) * p.key_blocks;
  for (int k = 0; k < heads_a_score; ++k) {
    const int h = head * heads_a_score + k;
    const int64_t block_row =
        (int64_t(b * p.kv_heads + h / p.group) * p.blocks + i) * p.group + h % p.group;
    if (k > 0) __syncthreads();
    if (seen > 0) sum_rows(p, block_row, sums);
    __syncthreads();
    const float* masses = p.masses + block_row * p.rows * p.pitch;
    for (int j = int(threadIdx.x); j < p.key_blocks; j += kThreads) {
      float score = 0;
      if (j < seen) {
        if (p.has_mean) score = p.mean_weight * p.mean_scores[block_row * p.pitch + j];
#pragma unroll 8
        for (int r = 0; r < p.rows; ++r) {
          const float mass =
              j < sums.key_blocks[r] ? masses[int64_t(r) * p.pitch + j] : negative_infinity();
          score += sums.weights[r] * power_of_two(mass - sums.log_sums[r]);
        }
      }
      score /= float(heads_a_score);
      scores[j] = k == 0 ? score : scores[j] + score;
    }
  }
}

}  // namespace

cudaError_t run_combine(const ScorePlan& p, cudaStream_t stream) {
  const int64_t grid = int64_t(p.batch) * p.score_heads * p.blocks;
  combine_kernel<<<unsigned(grid), kThreads, size_t(padded_rows(p)) * 12, stream>>>(p);
  return cudaGetLastError();
}

}  // namespace longspur::kernels::xattn::cuda
