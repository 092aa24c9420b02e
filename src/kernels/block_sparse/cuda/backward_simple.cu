// Backward of block-sparse attention for any type, any strides and D up to 256. A warp has a row of
// q, or of k and v, and walks the rows that it meets; the lanes share the columns. Nothing is added
// by more than one warp, so results never vary.
//
// delta needs no sums of its own here: dp - delta = grad_out . (v - out) + grad_lse.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "kernels/block_sparse/cuda/backward_impl.h"
#include "kernels/common/cuda/launch.cuh"
#include "kernels/common/cuda/status.cuh"

namespace longspur::kernels::block_sparse::cuda {

namespace {

constexpr int kThreads = 128;
constexpr int kLaneColumns = 8;  // 256 columns a warp

__device__ inline float load(const float* x) { return *x; }
__device__ inline float load(const __nv_bfloat16* x) { return __bfloat162float(*x); }
__device__ inline float load(const __half* x) { return __half2float(*x); }
__device__ inline void store(float* to, float x) { *to = x; }
__device__ inline void store(__nv_bfloat16* to, float x) { *to = __float2bfloat16_rn(x); }
__device__ inline void store(__half* to, float x) { *to = __float2half_rn(x); }

struct Problem {
  Shape shape;
  ConstRows q, k, v, out, grad_out;
  const float *lse, *grad_lse;
  int64_t lse_stride, grad_lse_stride;
  Rows dq, dk, dv;
  BlockMask mask;
};

// A lane's columns of a row: lane, lane + 32, ...
template <class Element>
__device__ void load_row(const Problem& p,
                         const ConstRows& rows,
                         int64_t token,
                         int64_t head,
                         float (&x)[kLaneColumns]) {
  const Element* row =
      static_cast<const Element*>(rows.data) + token * rows.token_stride + head * rows.head_stride;
#pragma unroll
  for (int i = 0; i < kLaneColumns; ++i) {
    const int d = i * kWarp + int(threadIdx.x) % kWarp;
    x[i] = d < p.shape.head_dim ? load(row + d) : 0.0f;
  }
}
template <class Element>
__device__ void store_row(const Problem& p,
                          const Rows& rows,
                          int64_t token,
                          int64_t head,
                          float factor,
                          const float (&x)[kLaneColumns]) {
  Element* row =
      static_cast<Element*>(rows.data) + token * rows.token_stride + head * rows.head_stride;
#pragma unroll
  for (int i = 0; i < kLaneColumns; ++i) {
    const int d = i * kWarp + int(threadIdx.x) % kWarp;
    if (d < p.shape.head_dim) store(row + d, factor * x[i]);
  }
}

// What a row of queries brings to each of its pairs.
template <class Element>
struct Query {
  float q[kLaneColumns], out[kLaneColumns], grad_out[kLaneColumns];
  float lse, grad_lse;

  __device__ Query(const Problem& p, int64_t token, int64_t head) {
    load_row<Element>(p, p.q, token, head, q);
    load_row<Element>(p, p.out, token, head, out);
    load_row<Element>(p, p.grad_out, token, head, grad_out);
    lse = p.lse[head * p.lse_stride + token];
    grad_lse = p.grad_lse == nullptr ? 0.0f : p.grad_lse[head * p.grad_lse_stride + token];
  }
  // p and ds of a pair, in every lane.
  __device__ float2 pair(const Problem& problem,
                         const float (&k)[kLaneColumns],
                         const float (&v)[kLaneColumns]) const {
    float s = 0.0f, dp = 0.0f;
#pragma unroll
    for (int i = 0; i < kLaneColumns; ++i) {
      s = fmaf(q[i], k[i], s);
      dp = fmaf(grad_out[i], v[i] - out[i], dp);
    }
    s = warp_sum(s);
    dp = warp_sum(dp) + grad_lse;
    const float probability = lse == -INFINITY ? 0.0f : expf(problem.shape.scale * s - lse);
    return make_float2(probability, probability == 0.0f ? 0.0f : probability * dp);
  }
};

__device__ void add(float (&to)[kLaneColumns], float factor, const float (&x)[kLaneColumns]) {
#pragma unroll
  for (int i = 0; i < kLaneColumns; ++i) to[i] = fmaf(factor, x[i], to[i]);
}

__device__ bool chosen(const Problem& p, int64_t b, int64_t head, int64_t i, int64_t j) {
  if (p.mask.words == nullptr) return true;
  const int64_t mask_head = head / (p.shape.heads / p.mask.heads);
  const int64_t block = j / p.mask.block_size;
  return (p.mask.row(b, mask_head, i / kQueryBlock)[block / 32] >> (block % 32) & 1u) != 0;
}

// The sequence of a token: the last one that begins at or before it and is not empty.
__device__ int64_t sequence_of_token(const int32_t* cu, int64_t batch, int64_t token) {
  int64_t low = 0, high = batch;  // cu[low] <= token < cu[high]
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    (cu[middle] <= token ? low : high) = middle;
  }
  return low;
}

template <class Element>
__global__ void __launch_bounds__(kThreads) simple_queries(const Problem p) {
  const Shape& s = p.shape;
  const int64_t warp = (int64_t(blockIdx.x) * kThreads + threadIdx.x) / kWarp;
  if (warp >= s.total_q * s.heads) return;
  const int64_t token = warp / s.heads, head = warp % s.heads;
  const int64_t kv_head = head / (s.heads / s.kv_heads);
  const int64_t b = sequence_of_token(s.cu_seqlens_q, s.batch, token);
  const int64_t n = s.cu_seqlens_q[b + 1] - s.cu_seqlens_q[b], i = token - s.cu_seqlens_q[b];
  const int64_t first = s.cu_seqlens_k[b], m = s.cu_seqlens_k[b + 1] - first;
  const int64_t end = s.causal ? i + m - n + 1 : m;
  const Query<Element> query(p, token, head);
  float dq[kLaneColumns] = {};
  for (int64_t j = 0; j < end; ++j) {
    if (!chosen(p, b, head, i, j)) {
      j = round_up(j + 1, p.mask.block_size) - 1;
      continue;
    }
    float k[kLaneColumns], v[kLaneColumns];
    load_row<Element>(p, p.k, first + j, kv_head, k);
    load_row<Element>(p, p.v, first + j, kv_head, v);
    add(dq, query.pair(p, k, v).y, k);
  }
  store_row<Element>(p, p.dq, token, head, s.scale, dq);
}

template <class Element>
__global__ void __launch_bounds__(kThreads) simple_keys(const Problem p) {
  const Shape& s = p.shape;
  const int64_t warp = (int64_t(blockIdx.x) * kThreads + threadIdx.x) / kWarp;
  if (warp >= s.total_k * s.kv_heads) return;
  const int64_t token = warp / s.kv_heads, kv_head = warp % s.kv_heads;
  const int64_t b = sequence_of_token(s.cu_seqlens_k, s.batch, token);
  const int64_t m = s.cu_seqlens_k[b + 1] - s.cu_seqlens_k[b], j = token - s.cu_seqlens_k[b];
  const int64_t first = s.cu_seqlens_q[b], n = s.cu_seqlens_q[b + 1] - first;
  const int64_t begin = s.causal && j > m - n ? j - (m - n) : 0;
  float k[kLaneColumns], v[kLaneColumns], dk[kLaneColumns] = {}, dv[kLaneColumns] = {};
  load_row<Element>(p, p.k, token, kv_head, k);
  load_row<Element>(p, p.v, token, kv_head, v);
  const int64_t group = s.heads / s.kv_heads;
  for (int64_t head = kv_head * group; head < (kv_head + 1) * group; ++head) {
    for (int64_t i = begin; i < n; ++i) {
      if (!chosen(p, b, head, i, j)) {
        i = round_up(i + 1, kQueryBlock) - 1;
        continue;
      }
      const Query<Element> query(p, first + i, head);
      const float2 pair = query.pair(p, k, v);
      add(dv, pair.x, query.grad_out);
      add(dk, pair.y, query.q);
    }
  }
  store_row<Element>(p, p.dk, token, kv_head, s.scale, dk);
  store_row<Element>(p, p.dv, token, kv_head, 1.0f, dv);
}

template <class Element>
CudaStatus launch(const Problem& p, cudaStream_t stream) {
  const int64_t queries = ceil_div(p.shape.total_q * p.shape.heads, int64_t{kThreads / kWarp});
  const int64_t keys = ceil_div(p.shape.total_k * p.shape.kv_heads, int64_t{kThreads / kWarp});
  if (queries > INT32_MAX || keys > INT32_MAX)
    return "block-sparse backward: more rows than a launch has";
  if (queries > 0) simple_queries<Element><<<unsigned(queries), kThreads, 0, stream>>>(p);
  if (keys > 0) simple_keys<Element><<<unsigned(keys), kThreads, 0, stream>>>(p);
  return launch_status();
}

}  // namespace

CudaStatus backward_simple(const BackwardArgs& a, cudaStream_t stream) {
  const Problem p{a.shape,    a.q,   a.k,        a.v,          a.out,
                  a.grad_out, a.lse, a.grad_lse, a.lse_stride, a.grad_lse_stride,
                  a.dq,       a.dk,  a.dv,       a.mask};
  switch (a.shape.type) {
    case Type::kBF16:
      return launch<__nv_bfloat16>(p, stream);
    case Type::kF16:
      return launch<__half>(p, stream);
    case Type::kF32:
      return launch<float>(p, stream);
  }
  return "block-sparse backward: unknown type";
}

}  // namespace longspur::kernels::block_sparse::cuda
