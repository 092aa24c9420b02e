// Attention in plain fp32 arithmetic, for what the fast kernel does not take: fp32, other head
// sizes, rows at any stride. A block of threads has 32 query rows of a head and goes through the
// keys of listed blocks 32 at a time; every element is read by its own load.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>

#include "kernels/block_sparse/cuda/forward_impl.h"
#include "kernels/common/cuda/launch.cuh"

namespace longspur::kernels::block_sparse::cuda {

namespace {

constexpr int kThreads = 128;
constexpr int kRows = 32, kKeys = 32;  // of a tile
constexpr int kPageKeys = 64;

struct Params {
  Shape shape;
  ConstRows q, k, v;
  Pages paged;
  Rows out;
  float* lse;
  int64_t lse_stride;
  BlockMask mask;
};

__device__ float value_of(float x) { return x; }
__device__ float value_of(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ float value_of(__half x) { return __half2float(x); }
template <class T>
__device__ T rounded(float x) {
  return T(x);
}

// kDim: at least D. Rows are padded by one float: no bank conflicts down a column.
template <int kDim>
struct Tiles {
  float q[kRows][kDim + 1], kv[kKeys][kDim + 1], p[kRows][kKeys + 1];
  float factor[kRows], m[kRows], sum[kRows];
};

template <class T, int kDim>
class Block {
 public:
  __device__ Block(const Params& p, Tiles<kDim>& tiles, int64_t b, int64_t head, int64_t first)
      : p_(p),
        tiles_(tiles),
        b_(b),
        head_(head),
        kv_head_(head / (p.shape.heads / p.shape.kv_heads)),
        first_(first),
        query_token_(p.shape.cu_seqlens_q[b]),
        key_token_(p.shape.cu_seqlens_k[b]),
        queries_(p.shape.cu_seqlens_q[b + 1] - query_token_),
        keys_(p.shape.cu_seqlens_k[b + 1] - key_token_),
        dim_(int(p.shape.head_dim)) {}

  __device__ void run() {
    if (first_ >= queries_) return;
    load(tiles_.q, queries_ - first_, [&](int64_t i) {
      return static_cast<const T*>(p_.q.data) + (query_token_ + first_ + i) * p_.q.token_stride +
             head_ * p_.q.head_stride;
    });
    if (threadIdx.x < kRows) {
      tiles_.m[threadIdx.x] = -INFINITY;
      tiles_.sum[threadIdx.x] = 0.0f;
    }
#pragma unroll
    for (int i = 0; i < kOwn; ++i) out_[i] = 0.0f;
    const int64_t last_row = min(first_ + kRows, queries_) - 1;
    const int64_t end = p_.shape.causal ? min(keys_, keys_ - queries_ + last_row + 1) : keys_;
    for (int64_t key = 0; key < end; key += kKeys) {
      if (listed(key)) add_keys(key);
    }
    __syncthreads();
    store();
  }

 private:
  static constexpr int kOwn = kRows * kDim / kThreads;  // results of a thread, of one row
  static constexpr int kThreadsARow = kThreads / kRows;

  __device__ bool listed(int64_t key) const {
    if (p_.mask.words == nullptr) return true;
    const int64_t mask_head = head_ / (p_.shape.heads / p_.mask.heads);
    const uint32_t* words =
        p_.mask.words +
        ((b_ * p_.mask.heads + mask_head) * p_.mask.query_blocks + first_ / kQueryBlock) *
            p_.mask.row_words;
    const int64_t j = key / p_.mask.block_size;
    return j / 32 < p_.mask.row_words && (words[j / 32] >> (j % 32) & 1u) != 0;
  }

  // Rows from `row(i)` on, zeros from `count` on.
  template <class Row>
  __device__ void load(float (&to)[kRows][kDim + 1], int64_t count, const Row& row) const {
    __syncthreads();
    for (int i = int(threadIdx.x); i < kRows * kDim; i += kThreads) {
      const int r = i / kDim, c = i % kDim;
      to[r][c] = r < count && c < dim_ ? value_of(row(r)[c]) : 0.0f;
    }
    __syncthreads();
  }
  __device__ const T* key_row(const ConstRows& rows, int64_t key, int64_t in_page) const {
    if (p_.paged.pool == nullptr)
      return static_cast<const T*>(rows.data) + (key_token_ + key) * rows.token_stride +
             kv_head_ * rows.head_stride;
    const int64_t page =
        p_.paged.block_table[(b_ * p_.shape.kv_heads + kv_head_) * p_.paged.max_blocks +
                             key / kPageKeys];
    return static_cast<const T*>(p_.paged.pool) +
           (page * 2 * kPageKeys + in_page + key % kPageKeys) * dim_;
  }

  __device__ void add_keys(int64_t first_key) {
    load(tiles_.kv, keys_ - first_key, [&](int64_t i) { return key_row(p_.k, first_key + i, 0); });
    for (int i = int(threadIdx.x); i < kRows * kKeys; i += kThreads) {
      const int r = i / kKeys, j = i % kKeys;
      const int64_t key = first_key + j, row = first_ + r;
      float dot = 0.0f;
      for (int c = 0; c < dim_; ++c) dot = fmaf(tiles_.q[r][c], tiles_.kv[j][c], dot);
      const bool seen = key < keys_ && (!p_.shape.causal || key <= row + keys_ - queries_);
      tiles_.p[r][j] = seen ? dot * p_.shape.scale : -INFINITY;
    }
    __syncthreads();
    soften();
    load(tiles_.kv, keys_ - first_key,
         [&](int64_t i) { return key_row(p_.v, first_key + i, kPageKeys); });
    const int r = int(threadIdx.x) / kThreadsARow, c = int(threadIdx.x) % kThreadsARow;
    const float factor = tiles_.factor[r];
#pragma unroll
    for (int i = 0; i < kOwn; ++i) out_[i] *= factor;
    for (int j = 0; j < kKeys; ++j) {
      const float p = tiles_.p[r][j];
      if (p == 0.0f) continue;  // what the row does not see may be NaN
#pragma unroll
      for (int i = 0; i < kOwn; ++i) out_[i] = fmaf(p, tiles_.kv[j][c + i * kThreadsARow], out_[i]);
    }
  }

  // A warp takes eight rows, a lane a key.
  __device__ void soften() {
    const int warp = int(threadIdx.x) / kWarp, lane = int(threadIdx.x) % kWarp;
    for (int r = warp; r < kRows; r += kThreads / kWarp) {
      const float s = tiles_.p[r][lane], old = tiles_.m[r];
      const float m = fmaxf(old, warp_max(s));
      const float p = m == -INFINITY ? (isnan(s) ? s : 0.0f) : expf(s - m);
      const float sum = warp_sum(p), factor = m == -INFINITY ? 1.0f : expf(old - m);
      __syncwarp();
      tiles_.p[r][lane] = p;
      if (lane == 0) {
        tiles_.m[r] = m;
        tiles_.factor[r] = factor;
        tiles_.sum[r] = tiles_.sum[r] * factor + sum;
      }
    }
  }

  __device__ void store() const {
    const int r = int(threadIdx.x) / kThreadsARow, c = int(threadIdx.x) % kThreadsARow;
    const int64_t row = first_ + r;
    if (row >= queries_) return;
    const float sum = tiles_.sum[r];
    T* out = static_cast<T*>(p_.out.data) + (query_token_ + row) * p_.out.token_stride +
             head_ * p_.out.head_stride;
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      const int column = c + i * kThreadsARow;
      if (column < dim_) out[column] = rounded<T>(sum == 0.0f ? 0.0f : out_[i] / sum);
    }
    if (c == 0)
      p_.lse[head_ * p_.lse_stride + query_token_ + row] =
          sum == 0.0f ? -INFINITY : tiles_.m[r] + logf(sum);
  }

  const Params& p_;
  Tiles<kDim>& tiles_;
  const int64_t b_, head_, kv_head_, first_, query_token_, key_token_, queries_, keys_;
  const int dim_;
  float out_[kOwn];
};

// blockIdx.x: rows of the longest sequence, from the last ones; y: heads; z: sequences.
template <class T, int kDim>
__global__ void __launch_bounds__(kThreads)
    forward_simple_kernel(const __grid_constant__ Params p, int64_t batch) {
  extern __shared__ float memory[];
  auto& tiles = *reinterpret_cast<Tiles<kDim>*>(memory);
  const int64_t first = int64_t(gridDim.x - 1 - blockIdx.x) * kRows;
  for (int64_t b = blockIdx.z; b < batch; b += gridDim.z) {
    __syncthreads();
    Block<T, kDim>(p, tiles, b, blockIdx.y, first).run();
  }
}

template <class T, int kDim>
cudaError_t launch(const Params& p, cudaStream_t stream) {
  auto* kernel = forward_simple_kernel<T, kDim>;
  constexpr int kBytes = int(sizeof(Tiles<kDim>));
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
  if (error != cudaSuccess) return error;
  const int64_t longest = std::min(p.shape.max_seqlen_q, p.shape.total_q);
  const dim3 grid(unsigned(std::max<int64_t>((longest + kRows - 1) / kRows, 1)),
                  unsigned(p.shape.heads), unsigned(std::min<int64_t>(p.shape.batch, 65535)));
  kernel<<<grid, kThreads, kBytes, stream>>>(p, p.shape.batch);
  return cudaGetLastError();
}

template <class T>
cudaError_t launch_type(const Params& p, cudaStream_t stream) {
  if (p.shape.head_dim <= 64) return launch<T, 64>(p, stream);
  if (p.shape.head_dim <= 128) return launch<T, 128>(p, stream);
  return launch<T, 256>(p, stream);
}

}  // namespace

cudaError_t run_forward_simple(const ForwardArgs& a, cudaStream_t stream) {
  const Params p{a.shape, a.q, a.k, a.v, a.paged, a.out, a.lse, a.lse_stride, a.mask};
  switch (a.shape.type) {
    case Type::kBF16:
      return launch_type<__nv_bfloat16>(p, stream);
    case Type::kF16:
      return launch_type<__half>(p, stream);
    case Type::kF32:
      return launch_type<float>(p, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace longspur::kernels::block_sparse::cuda
