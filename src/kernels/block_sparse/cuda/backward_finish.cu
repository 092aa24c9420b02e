// After the main kernel of the backward: sums in the order of its registers become rows of their
// own type, by way of shared memory.
#include "kernels/block_sparse/cuda/attention_mma.cuh"
#include "kernels/block_sparse/cuda/backward_impl.h"
#include "kernels/common/cuda/launch.cuh"
#include "kernels/common/cuda/status.cuh"

namespace longspur::kernels::block_sparse::cuda {

namespace {

constexpr int kThreads = 256;  // as many as the consumers that made the sums

// Rows [kRows][kDim] in shared memory; 16 bytes more a row, against bank conflicts.
template <int kRows, int kDim>
struct RowBuffer {
  static constexpr int kPitch = kDim * 2 + 16;
  alignas(16) uint8_t bytes[kRows * kPitch];

  // Registers 4 i .. of kCount / 4 groups: rows `row` + lane / 4 and + 8, columns `column` + 8 i
  // + 2 (lane % 4).
  template <class Element, int kCount>
  __device__ void put(const float4* from, int row, int column, float factor) {
    const int lane = int(threadIdx.x) % kWarp;
    uint8_t* to = bytes + (row + lane / 4) * kPitch + (column + lane % 4 * 2) * 2;
#pragma unroll
    for (int i = 0; i < kCount / 4; ++i) {
      const float4 x = __ldcs(from + i * 128);
      *reinterpret_cast<uint32_t*>(to + i * 16) = pack_pair<Element>(factor * x.x, factor * x.y);
      *reinterpret_cast<uint32_t*>(to + i * 16 + 8 * kPitch) =
          pack_pair<Element>(factor * x.z, factor * x.w);
    }
  }
  template <class Element>
  __device__ void store(Element* to, int64_t stride, int rows) const {
    constexpr int kChunks = kDim / 8;
    for (int i = int(threadIdx.x); i < rows * kChunks; i += kThreads) {
      const int row = i / kChunks, chunk = i % kChunks;
      __stcs(reinterpret_cast<uint4*>(to + row * stride + chunk * 8),
             *reinterpret_cast<const uint4*>(bytes + row * kPitch + chunk * 16));
    }
  }
};

// A block a tile of dq: [w][8][128 threads][4], consumer w half the columns or half the rows.
template <class Element, int kDim>
__global__ void __launch_bounds__(kThreads) finish_queries(const BackwardParams p, const Rows dq) {
  constexpr int kRows = queries_a_step(kDim);
  __shared__ RowBuffer<kRows, kDim> buffer;
  const int tile = int(blockIdx.x);
  const auto at = QueryTile<kRows>::of(p, tile);
  if (at.rows <= 0) return;
  const int w = int(threadIdx.x) / 128, thread = int(threadIdx.x) % 128;
  const auto* from = reinterpret_cast<const float4*>(p.dq + int64_t(tile) * kRows * kDim) +
                     w * (kRows * kDim / 8) + thread;
  buffer.template put<Element, 32>(from, thread / kWarp * 16 + (kDim == 64 ? w * 64 : 0),
                                   kDim == 128 ? w * 64 : 0, p.scale);
  __syncthreads();
  buffer.store(
      static_cast<Element*>(dq.data) + at.begin * dq.token_stride + at.head * dq.head_stride,
      dq.token_stride, at.rows);
}

// A block a slot: dk, then dv.
template <class Element, int kDim>
__global__ void __launch_bounds__(kThreads)
    finish_keys(const BackwardParams p, const Rows dk, const Rows dv) {
  __shared__ RowBuffer<kKeys, kDim> buffer;
  const int slot = int(blockIdx.x);
  if (slot >= p.control->slots) return;
  const int column = p.slot_columns[slot], head = column / p.key_blocks;
  const KeyBlock at = KeyBlock::of(p, column % p.key_blocks);
  if (!at.exists()) return;
  const int rows = min(kKeys, at.keys - at.index * kKeys);
  const int64_t token = at.begin_k + at.index * kKeys;
  const int w = int(threadIdx.x) / 128, thread = int(threadIdx.x) % 128;
#pragma unroll
  for (int which = 0; which < 2; ++which) {
    const Rows& to = which == 0 ? dk : dv;
    const auto* from = reinterpret_cast<const float4*>(p.slots) +
                       int64_t((slot * 2 + which) * 2 + w) * (64 * kDim / 4) + thread;
    __syncthreads();
    buffer.template put<Element, kDim / 2>(from, w * 64 + thread / kWarp * 16, 0,
                                           which == 0 ? p.scale : 1.0f);
    __syncthreads();
    buffer.store(static_cast<Element*>(to.data) + token * to.token_stride + head * to.head_stride,
                 to.token_stride, rows);
  }
}

template <class Element, int kDim>
void launch(const BackwardArgs& args, const BackwardParams& p, cudaStream_t stream) {
  const int64_t tiles = int64_t(p.heads) * p.query_blocks * (kQueryBlock / queries_a_step(kDim));
  finish_queries<Element, kDim><<<unsigned(tiles), kThreads, 0, stream>>>(p, args.dq);
  if (p.max_slots > 0)
    finish_keys<Element, kDim><<<unsigned(p.max_slots), kThreads, 0, stream>>>(p, args.dk, args.dv);
}

}  // namespace

CudaStatus finish(const BackwardArgs& args, const BackwardParams& p, cudaStream_t stream) {
  const bool wide = args.shape.head_dim == 128;
  if (args.shape.type == Type::kBF16)
    (wide ? launch<__nv_bfloat16, 128> : launch<__nv_bfloat16, 64>)(args, p, stream);
  else
    (wide ? launch<__half, 128> : launch<__half, 64>)(args, p, stream);
  return launch_status();
}

}  // namespace longspur::kernels::block_sparse::cuda
