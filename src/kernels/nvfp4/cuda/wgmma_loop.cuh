// What the wgmma products share: the ring of stages in shared memory, the decoding of W into the
// register operand, the main loop, and the map of x for the tensor memory accelerator.
#pragma once

#include <cuda.h>
#include <cuda_runtime.h>

#include <algorithm>

#include "kernels/common/cuda/launch.cuh"
#include "kernels/common/cuda/sm90.cuh"
#include "kernels/nvfp4/cuda/matmul.h"
#include "kernels/nvfp4/cuda/packed.cuh"

namespace longspur::kernels::nvfp4::cuda {

inline constexpr int kGroupThreads = 128;
inline constexpr int kConsumers = 2;  // warpgroups; the threads after them copy
inline constexpr int kConsumerThreads = kConsumers * kGroupThreads;
inline constexpr int kHalf = 64;             // columns of a swizzled row of x
inline constexpr int kSharedBytes = 232448;  // of a multiprocessor, for blocks
inline constexpr int kMostStages = 12;

// kRowTiles: tiles of 64 rows a consumer has.
template <int kTokenCount, int kRowTileCount>
struct Shape {
  static constexpr int kTokens = kTokenCount, kRowTiles = kRowTileCount;
  // Small tiles leave registers for two blocks a multiprocessor, which hide each other's waits.
  static constexpr int kBlocks = kTokens <= 64 && kRowTiles == 1 ? 2 : 1;
  // One block a multiprocessor: a whole group copies, because only that can give its registers
  // away.
  static constexpr int kThreads = kConsumerThreads + (kBlocks == 2 ? kWarp : kGroupThreads);
  static constexpr int kRingBytes = kSharedBytes / kBlocks - 4096;
  static constexpr int kRows = 64 * kRowTiles * kConsumers;
  static constexpr int kGroups = kRows / kGroupRows;  // packed groups of 128 rows
  static constexpr int kHalfBytes = kTokens * kHalf * 2;
  static constexpr int kXBytes = 2 * kHalfBytes;
  static constexpr int kStageBytes = kXBytes + kGroups * kGroupBytes;
  static constexpr int kStages = std::min(kMostStages, kRingBytes / kStageBytes);
  static constexpr int kPitch = kRows + 4;  // floats of a token's row of sums: no bank conflicts
  static constexpr int kBytes = kStages * kStageBytes + 2 * kStages * 8 + 1024;
  static_assert(kTokens * kPitch * 4 <= kStages * kStageBytes, "the sums take the ring's place");
};

struct Ring {
  uint32_t stages, full, empty;  // addresses
};

// Starts the barriers; all threads of the block must pass a __syncthreads() before they use them.
template <class S>
__device__ void init_ring(const Ring& ring) {
  for (int i = 0; i < S::kStages; ++i) {
    init_barrier(ring.full + uint32_t(i * 8), 1);
    init_barrier(ring.empty + uint32_t(i * 8), kConsumerThreads / kWarp);
  }
  publish_barriers();
}

// Copies of one chunk of a block of rows, and of one of a block of tokens, into a stage.
template <class S>
__device__ void copy_weights(
    const Ring& ring, int stage, const uint8_t* packed, int group, int groups, int chunks, int i) {
  const uint32_t full = ring.full + uint32_t(stage * 8);
  const uint32_t to = ring.stages + uint32_t(stage * S::kStageBytes + S::kXBytes);
  const int count = min(S::kGroups, groups - group);
  expect_bytes(full, uint32_t(S::kXBytes + count * kGroupBytes));
  for (int g = 0; g < count; ++g) {
    copy_bulk(to + uint32_t(g * kGroupBytes),
              packed + (int64_t(group + g) * chunks + i) * kGroupBytes, kGroupBytes, full);
  }
}
template <class S>
__device__ void copy_tokens(const Ring& ring, int stage, const CUtensorMap& x, int token, int i) {
  const uint32_t to = ring.stages + uint32_t(stage * S::kStageBytes);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    copy_box(to + uint32_t(half * S::kHalfBytes), &x, i * kChunk + half * kHalf, token,
             ring.full + uint32_t(stage * 8));
  }
}

// Decodes the four k-steps of one half of a packed tile.
template <class Element>
__device__ void decode_half(uint32_t tile, int half, int lane, uint32_t (&a)[4][4]) {
  using D = Decoder<Element>;
  const uint4 codes = load_shared(tile + uint32_t(half * kCodeBytes / 2 + lane * 16));
  const uint4 scales = load_shared(tile + uint32_t(kCodeBytes + lane / 4 * 16));
  const uint32_t s0 = half == 0 ? scales.x : scales.z, s1 = half == 0 ? scales.y : scales.w;
  decode_step<Element>(codes.x, D::even(s0), a[0]);
  decode_step<Element>(codes.y, D::odd(s0), a[1]);
  decode_step<Element>(codes.z, D::even(s1), a[2]);
  decode_step<Element>(codes.w, D::odd(s1), a[3]);
}

// Whether a stage of weights and x has come.
template <class S>
struct Stage {
  __device__ Stage(const Ring& ring, int i)
      : index(i % S::kStages),
        round(i / S::kStages),
        x(ring.stages + uint32_t(index * S::kStageBytes)),
        full(ring.full + uint32_t(index * 8)),
        empty(ring.empty + uint32_t(index * 8)) {}
  __device__ void wait() const { wait_barrier(full, uint32_t(round) & 1u); }
  __device__ void release() const {
    if (threadIdx.x % kWarp == 0) arrive(empty);
  }
  __device__ uint32_t tile(int consumer, int r) const {
    const int warp = int(threadIdx.x) % kGroupThreads / kWarp;
    return x + uint32_t(S::kXBytes + ((consumer * S::kRowTiles + r) * 4 + warp) * kTileBytes);
  }
  __device__ uint64_t operand(int half) const {
    return operand_descriptor(x + uint32_t(half * S::kHalfBytes));
  }
  int index, round;
  uint32_t x, full, empty;
};

// A warpgroup's sums over the chunks that are the ring's from `first` on. The products of 64
// columns are under way while the next 64 are decoded.
template <class Element, class S>
__device__ void consume(const Ring& ring,
                        int consumer,
                        int first,
                        int chunks,
                        float (&sums)[S::kRowTiles][S::kTokens / 2]) {
  const int lane = int(threadIdx.x) % kWarp;
  uint32_t a[2][4][4];  // of the products under way and of the next
  for (int i = 0; i < chunks; ++i) {
    const Stage<S> stage(ring, first + i);
    stage.wait();
#pragma unroll
    for (int unit = 0; unit < 2 * S::kRowTiles; ++unit) {
      const int half = unit / S::kRowTiles, r = unit % S::kRowTiles;
      wgmma_wait<1>();  // the operand of two units ago is free
      if (unit == 1 && i > 0) Stage<S>(ring, first + i - 1).release();
      decode_half<Element>(stage.tile(consumer, r), half, lane, a[unit % 2]);
      const uint64_t b = stage.operand(half);
      wgmma_fence();
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        Wgmma<Element, S::kTokens>::run(sums[r], a[unit % 2][j], b + uint64_t(j * 2),
                                        i == 0 && half == 0 && j == 0);
      }
      wgmma_commit();
    }
  }
  wgmma_wait<0>();
  if (chunks > 0) Stage<S>(ring, first + chunks - 1).release();
#pragma unroll
  for (int r = 0; r < S::kRowTiles; ++r) hold_sums(sums[r]);
}

// The map of x [M, K] in boxes of 64 columns and `tokens` rows; false where the driver refuses.
bool make_map(const MatmulArgs& args, int tokens, CUtensorMap& map);

// matmul_wide.cu: x without multipliers.
cudaError_t run_wide(const MatmulArgs& args, cudaStream_t stream);

inline int chunks_of(const MatmulArgs& args) { return int((args.w.k + kChunk - 1) / kChunk); }
inline int groups_of(const MatmulArgs& args) {
  return int((args.w.n + kGroupRows - 1) / kGroupRows);
}

}  // namespace longspur::kernels::nvfp4::cuda
