// The list of pieces of a product that some query sees.
#include <cuda_runtime.h>

#include "kernels/xattn/cuda/product.cuh"

namespace longspur::kernels::xattn::cuda {

namespace {

constexpr int kThreads = 1024;

// Keys that the last query of a unit sees.
__device__ int unit_keys(const ScorePlan& p, const WorkShape& shape, const Sequence& s, int unit) {
  int first = unit / p.group * shape.stride, last = first + shape.stride - 1;
  if (shape.stride == 0) {
    first = unit * 2 * kRowsOfBlock / shape.block_rows;
    last = (unit * 2 * kRowsOfBlock + 2 * kRowsOfBlock - 1) / shape.block_rows;
  }
  if (first >= p.blocks || (p.first_block + first) * kRowsOfBlock >= s.n) return 0;
  return s.visible(s.last_row(p.first_block + min(last, p.blocks - 1)), p.causal);
}

// Position of this thread's `count` in the block's, and the sum of all.
__device__ int position(int count, int& total) {
  __shared__ int sums[kThreads / kWarp];
  const int warp = int(threadIdx.x) / kWarp, lane = int(threadIdx.x) % kWarp;
  int upto = count;
  for (int offset = 1; offset < kWarp; offset *= 2) {
    const int before = __shfl_up_sync(~0u, upto, unsigned(offset));
    if (lane >= offset) upto += before;
  }
  if (lane == kWarp - 1) sums[warp] = upto;
  __syncthreads();
  int before = 0;
  total = 0;
  for (int w = 0; w < kThreads / kWarp; ++w) {
    if (w < warp) before += sums[w];
    total += sums[w];
  }
  __syncthreads();
  return before + upto - count;
}

// A thread takes all units side by side of one column.
__global__ void __launch_bounds__(kThreads) work_kernel(const ScorePlan p, const WorkShape shape) {
  wait_for_previous();
  const int64_t sides = (shape.units + shape.together - 1) / shape.together;
  const int64_t all = int64_t(p.batch) * p.kv_heads * sides * shape.columns;
  int done = 0;
  for (int64_t base = 0; base < all; base += kThreads) {
    const int64_t at = base + threadIdx.x;
    const int column = int(at % shape.columns), side = int(at / shape.columns % sides);
    const int bg = int(at / shape.columns / sides);
    const int first = side * shape.together;
    const int end = at < all ? min(first + shape.together, shape.units) : first;
    Sequence s{};
    if (at < all) s = Sequence::of(p, bg / p.kv_heads);
    const int begin_key = column * shape.column_keys;
    int count = 0, total = 0;
    for (int unit = first; unit < end; ++unit)
      count += unit_keys(p, shape, s, unit) > begin_key ? 1 : 0;
    int to = done + position(count, total);
    done += total;
    if (count == 0) continue;
    for (int unit = first; unit < end; ++unit) {
      const int keys = min(unit_keys(p, shape, s, unit) - begin_key, shape.column_keys);
      if (keys > 0) p.work[to++] = {bg, unit, column, div_up(keys, kRowsOfBlock)};
    }
  }
  if (threadIdx.x == 0) *p.work_count = done;
}

}  // namespace

cudaError_t list_work(const ScorePlan& p, const WorkShape& shape, cudaStream_t stream) {
  work_kernel<<<1, kThreads, 0, stream>>>(p, shape);
  return cudaGetLastError();
}

int multiprocessors() {
  int device = 0, count = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device);
  return count > 0 ? count : 1;
}

}  // namespace longspur::kernels::xattn::cuda
