// Products of at most 8 tokens, or 16 where N leaves each block few rows, bound by reading W once.
// Packed weights.
//
// One block a multiprocessor, and each owns kTiles neighbouring row tiles, as many as make one
// wave. Its 16 warps share the columns: warp i takes chunks i, i + 16, ... of 128, and for each the
// x fragments once and then the row tiles. Weights and x come through a ring in shared memory that
// belongs to the warp, filled by asynchronous copies some steps ahead, across chunks and blocks of
// rows: no barrier in the main loop, and the first loads are under way before the kernel waits for
// the one that makes x. Sums of a chunk (eight k-steps) are added to the total in rounded fp32.
#include <cuda_runtime.h>

#include <algorithm>

#include "kernels/common/cuda/launch.cuh"
#include "kernels/common/cuda/sm90.cuh"
#include "kernels/common/cuda/status.cuh"
#include "kernels/nvfp4/cuda/matmul_impl.h"
#include "kernels/nvfp4/cuda/packed.cuh"
#include "kernels/nvfp4/cuda/store.cuh"

namespace longspur::kernels::nvfp4::cuda {

namespace {

constexpr int kTokenTile = 8;
constexpr int kRowBytes = kChunk * 2;  // of x, one token and one chunk
constexpr int kSharedBytes = 233472;   // of a multiprocessor
constexpr int kReserved = 1024;        // of each block

struct Params {
  const uint8_t* packed;
  const void* x;  // [M, K]
  int64_t k;
  int m, tiles, chunks, units;  // a unit: kTiles row tiles
  Finish finish;
};

template <int kTileCount, int kTokenTileCount>
struct Layout {
  static constexpr int kTiles = kTileCount, kTokenTiles = kTokenTileCount;
  // Two blocks a multiprocessor where x is small: one streams while the other adds up and ends, or
  // the next product starts in its place.
  static constexpr int kBlocks = kTokenTiles == 1 ? 2 : 1;
  static constexpr int kWarps = 16 / kBlocks;
  static constexpr int kThreads = kWarps * kWarp;
  static constexpr int kMostBytes = kSharedBytes / kBlocks - kReserved;
  static constexpr int kXBytes = kTokenTiles * kTokenTile * kRowBytes;  // a chunk of x
  static constexpr int kSumFloats = kTokenTiles * kTileRows * kTokenTile;
  // Chunks of x in flight beside the present one.
  static constexpr int x_stages(int stages) { return (stages - 1 + kTiles - 1) / kTiles + 1; }
  static constexpr int bytes(int stages) {
    return kWarps * (stages * kTileBytes + x_stages(stages) * kXBytes + 2 * kSumFloats * 4);
  }
  static constexpr int most_stages() {
    int stages = 2;
    while (stages < 8 && bytes(stages + 1) <= kMostBytes) ++stages;
    return stages;
  }
  static constexpr int kStages = most_stages();
  static constexpr int kXStages = x_stages(kStages);
  static constexpr int kBytes = bytes(kStages);
};

// Walks a warp's steps: row tiles of a chunk, chunks of a unit, units of the block.
template <class L>
struct Cursor {
  int tile = 0, chunk, unit, stage = 0, x_stage = 0;

  __device__ Cursor(int warp) : chunk(warp), unit(int(blockIdx.x)) {}
  __device__ bool valid(const Params& p) const { return unit < p.units && chunk < p.chunks; }
  __device__ void advance(const Params& p, int warp) {
    stage = stage + 1 == L::kStages ? 0 : stage + 1;
    if (++tile < L::kTiles) return;
    tile = 0;
    x_stage = x_stage + 1 == L::kXStages ? 0 : x_stage + 1;
    chunk += L::kWarps;
    if (chunk < p.chunks) return;
    chunk = warp;
    unit += int(gridDim.x);
  }
};

template <class L>
__device__ void issue_weights(const Params& p, const Cursor<L>& at, uint32_t ring, int lane) {
  const int tile = min(at.unit * L::kTiles + at.tile, p.tiles - 1);
  const uint8_t* from = p.packed +
                        (int64_t(tile / kGroupTiles) * p.chunks + at.chunk) * kGroupBytes +
                        tile % kGroupTiles * kTileBytes + lane * 16;
  const uint32_t to = ring + uint32_t(at.stage * kTileBytes + lane * 16);
  copy_async(to, from);
  copy_async(to + kCodeBytes / 2, from + kCodeBytes / 2);
  if (lane < kScaleBytes / 16) copy_async(to + kCodeBytes, from + kCodeBytes);
}

// x of a chunk, [tokens][16 units of 16 bytes], a unit's place rotated by its token: the eight rows
// that ldmatrix reads together lie in different banks. Tokens that do not exist are left as they
// are: a column of the product depends on its own column of x only.
template <class L>
__device__ void issue_x(const Params& p, const Cursor<L>& at, uint32_t x_ring, int lane) {
  const auto* x = static_cast<const uint8_t*>(p.x);
  for (int i = lane; i < p.m * 16; i += kWarp) {
    const int token = i / 16, unit = i % 16;
    const int64_t column = int64_t(at.chunk) * kChunk + unit * 8;
    const bool inside = column < p.k;
    copy_async(
        x_ring + uint32_t(at.x_stage * L::kXBytes + token * kRowBytes + (unit ^ token % 8) * 16),
        x + (token * p.k + (inside ? column : 0)) * 2, inside);
  }
}

// The B operands of a chunk: [token tile][pair of k-steps].
template <int kTokenTiles>
__device__ void load_x(uint4 (&b)[kTokenTiles][kSteps / 2], uint32_t x, int lane) {
  const int row = lane % 8, unit = lane / 8;
#pragma unroll
  for (int nt = 0; nt < kTokenTiles; ++nt) {
#pragma unroll
    for (int q = 0; q < kSteps / 2; ++q) {
      b[nt][q] = load_matrices(
          x + uint32_t((nt * kTokenTile + row) * kRowBytes + ((4 * q + unit) ^ row) * 16));
    }
  }
}

__device__ inline uint32_t word(const uint4& v, int i) {
  return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}

// sum += tile * x for the present step's tile.
template <class Element, int kTokenTiles>
__device__ void multiply(float (&sum)[kTokenTiles][4],
                         uint32_t tile,
                         const uint4 (&b)[kTokenTiles][kSteps / 2],
                         int lane) {
  using D = Decoder<Element>;
  const uint4 codes[2] = {load_shared(tile + uint32_t(lane * 16)),
                          load_shared(tile + uint32_t(kCodeBytes / 2 + lane * 16))};
  const uint4 scales = load_shared(tile + uint32_t(kCodeBytes + lane / 4 * 16));
  float part[kTokenTiles][4] = {};
#pragma unroll
  for (int q = 0; q < kSteps / 2; ++q) {
    uint32_t a[4];
    decode_step<Element>(word(codes[q / 2], q % 2 * 2), D::even(word(scales, q)), a);
#pragma unroll
    for (int nt = 0; nt < kTokenTiles; ++nt) mma<Element>(part[nt], a, b[nt][q].x, b[nt][q].y);
    decode_step<Element>(word(codes[q / 2], q % 2 * 2 + 1), D::odd(word(scales, q)), a);
#pragma unroll
    for (int nt = 0; nt < kTokenTiles; ++nt) mma<Element>(part[nt], a, b[nt][q].z, b[nt][q].w);
  }
#pragma unroll
  for (int nt = 0; nt < kTokenTiles; ++nt) {
#pragma unroll
    for (int i = 0; i < 4; ++i) sum[nt][i] += part[nt][i];
  }
}

// Adds up the warps' sums of each tile in the order of the warps and stores them. Two buffers: a
// warp writes the next tile's while others still read this one's.
template <class L>
__device__ void reduce(const Params& p,
                       int unit,
                       const float (&sums)[L::kTiles][L::kTokenTiles][4],
                       float* buffers) {
  constexpr int kFloats = L::kSumFloats, kWarps = L::kWarps;
  const int warp = int(threadIdx.x) / kWarp, lane = int(threadIdx.x) % kWarp;
  __syncthreads();  // the buffers may still be read for the unit before
#pragma unroll
  for (int r = 0; r < L::kTiles; ++r) {
    float* buffer = buffers + r % 2 * kWarps * kFloats;
#pragma unroll
    for (int nt = 0; nt < L::kTokenTiles; ++nt) {
      reinterpret_cast<float4*>(buffer + warp * kFloats + nt * 128)[lane] =
          make_float4(sums[r][nt][0], sums[r][nt][1], sums[r][nt][2], sums[r][nt][3]);
    }
    __syncthreads();
    const int i = int(threadIdx.x);
    if (i >= kFloats) continue;
    const int g = i % 128 / 16, t = i % 16 / 4, e = i % 4;
    const int row = (unit * L::kTiles + r) * kTileRows + g + e / 2 * 8;
    const int token = i / 128 * kTokenTile + 2 * t + e % 2;
    if (token >= p.m || row >= p.finish.n) continue;
    float sum = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) sum += buffer[w * kFloats + i];
    p.finish.store(token, row, sum);
  }
}

template <class Element, class L>
__global__ void __launch_bounds__(L::kThreads, L::kBlocks) few_tokens_mma_sm80(const Params p) {
  constexpr int kTiles = L::kTiles, kTokenTiles = L::kTokenTiles, kWarps = L::kWarps;
  extern __shared__ __align__(128) uint8_t shared[];
  let_next_start();
  const int warp = int(threadIdx.x) / kWarp, lane = int(threadIdx.x) % kWarp;
  const uint32_t ring = shared_address(shared) + uint32_t(warp * L::kStages * kTileBytes);
  const uint32_t x_ring = shared_address(shared) + uint32_t(kWarps * L::kStages * kTileBytes +
                                                            warp * L::kXStages * L::kXBytes);
  auto* buffers = reinterpret_cast<float*>(
      shared + kWarps * (L::kStages * kTileBytes + L::kXStages * L::kXBytes));

  Cursor<L> ahead(warp), at(warp), first_x(warp);
  for (int i = 0; i < L::kStages - 1; ++i) {
    if (ahead.valid(p)) {
      issue_weights<L>(p, ahead, ring, lane);
      ahead.advance(p, warp);
    }
    commit_copies();
  }
  wait_for_previous();
  for (int i = 0; i < L::kStages - 1 && first_x.valid(p); ++i) {
    if (first_x.tile == 0) issue_x<L>(p, first_x, x_ring, lane);
    first_x.advance(p, warp);
  }
  commit_copies();

  bool started = false;
  for (int unit = int(blockIdx.x); unit < p.units; unit += int(gridDim.x)) {
    float sums[kTiles][kTokenTiles][4] = {};
    for (int chunk = warp; chunk < p.chunks; chunk += kWarps) {
      uint4 b[kTokenTiles][kSteps / 2];
#pragma unroll
      for (int r = 0; r < kTiles; ++r) {
        __syncwarp();  // all lanes are done with the stage that is filled now
        if (ahead.valid(p)) {
          issue_weights<L>(p, ahead, ring, lane);
          if (ahead.tile == 0) issue_x<L>(p, ahead, x_ring, lane);
          ahead.advance(p, warp);
        }
        commit_copies();
        // The first x came after the first weights: everything but the newest copies.
        if (started)
          wait_copies<L::kStages - 1>();
        else
          wait_copies<1>();
        started = true;
        __syncwarp();  // the other lanes' copies too
        if (r == 0) load_x<kTokenTiles>(b, x_ring + uint32_t(at.x_stage * L::kXBytes), lane);
        multiply<Element, kTokenTiles>(sums[r], ring + uint32_t(at.stage * kTileBytes), b, lane);
        at.advance(p, warp);
      }
    }
    reduce<L>(p, unit, sums, buffers);
  }
}

template <class Element, class L>
cudaError_t launch(Params p, int multiprocessors, cudaStream_t stream) {
  p.units = (p.tiles + L::kTiles - 1) / L::kTiles;
  return launch_shared(few_tokens_mma_sm80<Element, L>,
                       dim3(unsigned(std::min(p.units, L::kBlocks * multiprocessors))), L::kThreads,
                       1, L::kBytes, stream, p);
}

// Row tiles a block: those that leave the fewest rounds of tiles over the places for blocks; of
// equals the most, since x is read once a block.
int tiles_a_block(int64_t tiles, int slots) {
  int best = 1;
  int64_t best_rounds = INT64_MAX;
  for (const int count : {1, 2, 3, 4, 6, 7, 8}) {
    const int64_t units = (tiles + count - 1) / count;
    const int64_t rounds = (units + slots - 1) / slots * count;
    if (rounds <= best_rounds) {
      best = count;
      best_rounds = rounds;
    }
  }
  return best;
}

// Two tiles of tokens leave registers for the sums of four row tiles.
constexpr int most_tiles(int token_tiles) { return token_tiles == 1 ? 8 : 4; }

template <class Element, int kTokenTiles>
cudaError_t launch_tiles(const Params& p, int multiprocessors, cudaStream_t stream) {
  const int count = tiles_a_block(p.tiles, Layout<1, kTokenTiles>::kBlocks * multiprocessors);
  if constexpr (most_tiles(kTokenTiles) > 4) {
    if (count == 6) return launch<Element, Layout<6, kTokenTiles>>(p, multiprocessors, stream);
    if (count == 7) return launch<Element, Layout<7, kTokenTiles>>(p, multiprocessors, stream);
    if (count == 8) return launch<Element, Layout<8, kTokenTiles>>(p, multiprocessors, stream);
  }
  switch (count) {
    case 1:
      return launch<Element, Layout<1, kTokenTiles>>(p, multiprocessors, stream);
    case 2:
      return launch<Element, Layout<2, kTokenTiles>>(p, multiprocessors, stream);
    case 3:
      return launch<Element, Layout<3, kTokenTiles>>(p, multiprocessors, stream);
    default:
      return launch<Element, Layout<4, kTokenTiles>>(p, multiprocessors, stream);
  }
}

template <class Element>
cudaError_t launch_tokens(const Params& p, int multiprocessors, cudaStream_t stream) {
  return p.m <= kTokenTile ? launch_tiles<Element, 1>(p, multiprocessors, stream)
                           : launch_tiles<Element, 2>(p, multiprocessors, stream);
}

int64_t tiles_of(const MatmulArgs& args) { return (args.w.n + kTileRows - 1) / kTileRows; }

bool accepts(const MatmulArgs& args) {
  if (args.w.packed == nullptr || args.x_codes != nullptr || args.x_type == Type::kF32)
    return false;
  if (args.w.n >= (int64_t(1) << 31) - kGroupRows || args.w.k >= int64_t(1) << 31) return false;
  if (args.m <= kTokenTile) return true;
  return args.m <= 2 * kTokenTile &&
         tiles_a_block(tiles_of(args), multiprocessors()) <= most_tiles(2);
}

CudaStatus run(const MatmulArgs& args, void* stream) {
  Params p{};
  p.packed = static_cast<const uint8_t*>(args.w.packed);
  p.x = args.x;
  p.k = args.w.k;
  p.m = int(args.m);
  p.tiles = int(tiles_of(args));
  p.chunks = int((args.w.k + kChunk - 1) / kChunk);
  p.finish = make_finish(args, kOperandUnit);
  const int count = multiprocessors();
  const auto s = static_cast<cudaStream_t>(stream);
  const cudaError_t error = args.x_type == Type::kBF16 ? launch_tokens<__nv_bfloat16>(p, count, s)
                                                       : launch_tokens<__half>(p, count, s);
  return error != cudaSuccess ? cudaGetErrorString(error) : launch_status();
}

}  // namespace

const Implementation kFewTokens{"few_tokens", accepts, run};

}  // namespace longspur::kernels::nvfp4::cuda
