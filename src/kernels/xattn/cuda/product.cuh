// What the tensor cores' kernels of this folder share: the list of pieces of a product, written on
// the device because lengths are known only there, the ring of stages in shared memory, tensor
// maps.
#pragma once

#include <cuda.h>
#include <cuda_runtime.h>

#include "kernels/common/cuda/tensor_map.h"
#include "kernels/xattn/cuda/scores.cuh"
#include "kernels/xattn/cuda/wgmma.cuh"

namespace longspur::kernels::xattn::cuda {

inline constexpr int kGroupThreads = 128, kConsumers = 2;
inline constexpr int kConsumerThreads = kConsumers * kGroupThreads;
inline constexpr int kProductThreads = kConsumerThreads + kGroupThreads;
inline constexpr int kSharedBytes = 232448;  // of a multiprocessor, for blocks
inline constexpr int kHalf = 64;             // columns of a swizzled row

int multiprocessors();

// A map of 16-bit elements in boxes of 64 columns, swizzled by 128 bytes. sizes, strides (elements,
// of the dimensions from the second on) and boxes from the innermost dimension.
template <int kDims>
bool make_map(CUtensorMap& map,
              const void* data,
              const int64_t (&sizes)[kDims],
              const int64_t (&strides)[kDims - 1],
              const int (&boxes)[kDims]) {
  cuuint64_t size[kDims], stride[kDims - 1];
  cuuint32_t box[kDims], step[kDims];
  for (int i = 0; i < kDims; ++i) {
    size[i] = cuuint64_t(sizes[i]);
    box[i] = cuuint32_t(boxes[i]);
    step[i] = 1;
    if (i > 0) stride[i - 1] = cuuint64_t(strides[i - 1]) * 2;
  }
  return encode_tiled()(&map, CU_TENSOR_MAP_DATA_TYPE_UINT16, kDims, const_cast<void*>(data), size,
                        stride, box, step, CU_TENSOR_MAP_INTERLEAVE_NONE,
                        CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                        CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

// Stages of shared memory that one thread fills and two warpgroups read, in turn.
template <int kStages>
struct Ring {
  uint32_t full, empty;  // addresses of barriers

  __device__ void init() const {
    for (int i = 0; i < kStages; ++i) {
      init_barrier(full + uint32_t(i * 8), 1);
      init_barrier(empty + uint32_t(i * 8), kConsumerThreads / kWarp);
    }
  }
  // The producer's: the stage of turn n is free.
  __device__ void wait_empty(int n) const {
    if (n >= kStages)
      wait_barrier(empty + uint32_t(n % kStages * 8), uint32_t(n / kStages - 1) & 1u);
  }
  __device__ uint32_t barrier(int n) const { return full + uint32_t(n % kStages * 8); }
  __device__ void wait_full(int n) const { wait_barrier(barrier(n), uint32_t(n / kStages) & 1u); }
  __device__ void release(int n) const {
    __syncwarp();  // every lane has read
    if (threadIdx.x % kWarp == 0) arrive(empty + uint32_t(n % kStages * 8));
  }
};

// How a product is cut into pieces.
struct WorkShape {
  int units;        // row tiles of a KV head
  int columns;      // the most pieces a row tile has
  int together;     // row tiles side by side, which share keys
  int stride;       // strided: S; a unit is a tile of S query blocks of one head. exact: 0
  int block_rows;   // exact: rows of a query block, of all heads of the group
  int column_keys;  // of a piece
};

// Writes the pieces of which some row sees some key to plan.work.
cudaError_t list_work(const ScorePlan& plan, const WorkShape& shape, cudaStream_t stream);

}  // namespace longspur::kernels::xattn::cuda
