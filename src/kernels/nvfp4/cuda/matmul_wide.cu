// Products of very many tokens: more blocks of 256 rows x 128 tokens than multiprocessors.
//
// The main loop is that of matmul_many.cu, but a block stays and takes one tile after the other:
// the copying warp runs ahead into the next tile while this one's sums are stored. Neighbouring
// blocks take neighbouring rows of the same tokens. 16-bit results are transposed in shared memory,
// in a place of their own, and stored by whole rows.
#include <cuda_runtime.h>

#include <algorithm>

#include "kernels/common/cuda/launch.cuh"
#include "kernels/nvfp4/cuda/matmul_impl.h"
#include "kernels/nvfp4/cuda/store.cuh"
#include "kernels/nvfp4/cuda/wgmma_loop.cuh"

namespace longspur::kernels::nvfp4::cuda {

namespace {

constexpr int kTokens = 128, kRowTiles = 2;

struct WideShape : Shape<kTokens, kRowTiles> {
  static constexpr int kStages = 3;
  static constexpr int kGroupPitch = kGroupRows + 8;  // elements of a token's rows: no conflicts
  static constexpr int kOutBytes = kTokens * kGroupPitch * 2;  // of a consumer
  static constexpr int kBytes =
      kStages * kStageBytes + kConsumers * kOutBytes + 2 * kStages * 8 + 1024;
  static_assert(kBytes <= kSharedBytes);
};
using S = WideShape;

struct Params {
  const uint8_t* packed;
  int m, chunks, groups, row_blocks, tiles;
  Finish finish;
};

__device__ void produce(const Params& p, const CUtensorMap& x, const Ring& ring) {
  bool waited = false;
  int n = 0;  // chunks so far
  for (int tile = int(blockIdx.x); tile < p.tiles; tile += int(gridDim.x)) {
    const int group = tile % p.row_blocks * S::kGroups, token = tile / p.row_blocks * kTokens;
    for (int i = 0; i < p.chunks; ++i, ++n) {
      const int stage = n % S::kStages, round = n / S::kStages;
      if (round > 0) wait_barrier(ring.empty + uint32_t(stage * 8), uint32_t(round - 1) & 1u);
      copy_weights<S>(ring, stage, p.packed, group, p.groups, p.chunks, i);
      if (!waited) wait_for_previous();
      waited = true;
      copy_tokens<S>(ring, stage, x, token, i);
    }
  }
}

__device__ inline void group_sync(int consumer) {
  asm volatile("bar.sync %0, %1;" ::"r"(1 + consumer), "n"(kGroupThreads) : "memory");
}

template <class Out>
__device__ uint32_t pair_of(float a, float b);
template <>
__device__ inline uint32_t pair_of<__nv_bfloat16>(float a, float b) {
  const __nv_bfloat162 v = __floats2bfloat162_rn(a, b);
  return reinterpret_cast<const uint32_t&>(v);
}
template <>
__device__ inline uint32_t pair_of<__half>(float a, float b) {
  const __half2 v = __floats2half2_rn(a, b);
  return reinterpret_cast<const uint32_t&>(v);
}

// A consumer's sums, scaled, to [tokens][rows]: the tensor cores' fragments are transposed on the
// way.
template <class Out>
__device__ void transpose(const Finish& f,
                          uint32_t out,
                          int64_t first_row,
                          const float (&sums)[kRowTiles][kTokens / 2]) {
  const int warp = int(threadIdx.x) % kGroupThreads / kWarp, lane = int(threadIdx.x) % kWarp;
#pragma unroll
  for (int r = 0; r < kRowTiles; ++r) {
    const int rows = (r * 4 + warp) * kTileRows;
    float factor[2], bias[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int64_t row = min(first_row + rows + h * 8 + lane / 4, f.n - 1);
      factor[h] = f.unit * f.row_factor(row);
      bias[h] = f.bias != nullptr ? f.bias[row] : 0.0f;
    }
    // Lane 8 i + j gives the address of row j of matrix i: token block i / 2, row half i % 2.
    const int token = lane / 16 * 8 + lane % 8, row = rows + lane / 8 % 2 * 8;
    const uint32_t to = out + uint32_t((token * S::kGroupPitch + row) * 2);
#pragma unroll
    for (int b = 0; b < kTokens / 8; b += 2) {
      uint32_t v[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float* s = &sums[r][(b + i / 2) * 4 + i % 2 * 2];
        v[i] = pair_of<Out>(fmaf(s[0], factor[i % 2], bias[i % 2]),
                            fmaf(s[1], factor[i % 2], bias[i % 2]));
      }
      asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(
                       to + uint32_t(b * 8 * S::kGroupPitch * 2)),
                   "r"(v[0]), "r"(v[1]), "r"(v[2]), "r"(v[3])
                   : "memory");
    }
  }
}

// Rows of 16-bit results from shared memory to y, 16 bytes a lane.
__device__ void store_rows(const Params& p, uint32_t out, int64_t first_token, int64_t first_row) {
  const int warp = int(threadIdx.x) % kGroupThreads / kWarp, lane = int(threadIdx.x) % kWarp;
  const int64_t n = p.finish.n, row = first_row + lane % 16 * 8;
  auto* y = static_cast<uint16_t*>(p.finish.y);
#pragma unroll 4
  for (int local = warp * 2 + lane / 16; local < kTokens; local += 8) {
    const int64_t token = first_token + local;
    const uint4 v = load_shared(out + uint32_t((local * S::kGroupPitch + lane % 16 * 8) * 2));
    if (token >= p.m) continue;
    if (n % 8 == 0) {
      if (row < n) __stcs(reinterpret_cast<uint4*>(y + token * n + row), v);
      continue;
    }
    const uint32_t words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int i = 0; i < 8; ++i)
      if (row + i < n) y[token * n + row + i] = uint16_t(words[i / 2] >> (i % 2 * 16));
  }
}

// fp32 results straight from the registers: eight lanes write 32 bytes.
__device__ void store_floats(const Params& p,
                             int64_t first_token,
                             int64_t first_row,
                             const float (&sums)[kRowTiles][kTokens / 2]) {
  const int warp = int(threadIdx.x) % kGroupThreads / kWarp, lane = int(threadIdx.x) % kWarp;
#pragma unroll
  for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
    for (int e = 0; e < kTokens / 2; ++e) {
      const int64_t row = first_row + (r * 4 + warp) * kTileRows + lane / 4 + e % 4 / 2 * 8;
      const int64_t token = first_token + e / 4 * 8 + lane % 4 * 2 + e % 2;
      if (row < p.finish.n && token < p.m) p.finish.store(token, row, sums[r][e]);
    }
  }
}

template <class Element>
__global__ void __launch_bounds__(S::kThreads, 1)
    wide_wgmma_sm90(const __grid_constant__ CUtensorMap x, const Params p) {
  extern __shared__ uint8_t shared[];
  let_next_start();
  const uint32_t base = (shared_address(shared) + 1023u) / 1024u * 1024u;  // the swizzle's wish
  const uint32_t outs = base + uint32_t(S::kStages * S::kStageBytes);
  const uint32_t barriers = outs + uint32_t(kConsumers * S::kOutBytes);
  const Ring ring{base, barriers, barriers + uint32_t(S::kStages * 8)};
  if (threadIdx.x == 0) init_ring<S>(ring);
  __syncthreads();
  if (threadIdx.x >= kConsumerThreads) {
    give_registers<40>();
    if (threadIdx.x == kConsumerThreads) produce(p, x, ring);
  } else {
    take_registers<232>();
    const int consumer = int(threadIdx.x) / kGroupThreads;
    const uint32_t out = outs + uint32_t(consumer * S::kOutBytes);
    int n = 0;  // chunks so far
    for (int tile = int(blockIdx.x); tile < p.tiles; tile += int(gridDim.x), n += p.chunks) {
      const int64_t first_row = int64_t(tile % p.row_blocks) * S::kRows + consumer * kGroupRows;
      const int64_t first_token = int64_t(tile / p.row_blocks) * kTokens;
      float sums[kRowTiles][kTokens / 2];
      consume<Element, S>(ring, consumer, n, p.chunks, sums);
      if (n == 0) wait_for_previous();  // writing y must wait as well
      if (p.finish.type == Type::kF32) {
        store_floats(p, first_token, first_row, sums);
        continue;
      }
      group_sync(consumer);  // the rows of the tile before have been read
      if (p.finish.type == Type::kBF16)
        transpose<__nv_bfloat16>(p.finish, out, first_row, sums);
      else
        transpose<__half>(p.finish, out, first_row, sums);
      group_sync(consumer);
      store_rows(p, out, first_token, first_row);
    }
  }
}

}  // namespace

cudaError_t run_wide(const MatmulArgs& args, cudaStream_t stream) {
  CUtensorMap map;
  if (!make_map(args, kTokens, map)) return cudaErrorNotSupported;
  Params p{static_cast<const uint8_t*>(args.w.packed),
           int(args.m),
           chunks_of(args),
           groups_of(args),
           int((args.w.n + S::kRows - 1) / S::kRows),
           0,
           make_finish(args, kOperandUnit)};
  const int64_t tiles = p.row_blocks * ((args.m + kTokens - 1) / kTokens);
  if (tiles > INT32_MAX) return cudaErrorInvalidConfiguration;
  p.tiles = int(tiles);
  const dim3 grid(unsigned(std::min(p.tiles, multiprocessors())));
  return args.x_type == Type::kBF16 ? launch_shared(wide_wgmma_sm90<__nv_bfloat16>, grid,
                                                    S::kThreads, 1, S::kBytes, stream, map, p)
                                    : launch_shared(wide_wgmma_sm90<__half>, grid, S::kThreads, 1,
                                                    S::kBytes, stream, map, p);
}

}  // namespace longspur::kernels::nvfp4::cuda
