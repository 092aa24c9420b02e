// Products of at most 16 tokens with canonical weights, for callers that have not packed them.
//
// Eight warps share the columns of 32 rows, in chunks of 128. Lane (g, t) of an m16n8k16 operand
// takes 32 neighbouring columns of rows g and g + 8, one 16-byte load and two scales each: the
// order of the columns inside a product is free as long as x has the same. A word of eight codes
// gives the pairs (i, i + 4). The next chunk is loaded while this one is multiplied, the first one
// before the kernel waits for the one that makes x.
#include <cuda_runtime.h>

#include "kernels/common/cuda/launch.cuh"
#include "kernels/common/cuda/sm90.cuh"
#include "kernels/common/cuda/status.cuh"
#include "kernels/nvfp4/codec.h"
#include "kernels/nvfp4/cuda/matmul_impl.h"
#include "kernels/nvfp4/cuda/packed.cuh"
#include "kernels/nvfp4/cuda/store.cuh"

namespace longspur::kernels::nvfp4::cuda {

namespace {

constexpr int kWarps = 8;
constexpr int kTiles = 2;  // row tiles a block
constexpr int kTokenTile = 8;
constexpr int kLaneColumns = 32;

struct Params {
  const uint8_t* codes;
  const uint8_t* scales;
  const void* x;  // [M, K]
  int64_t n, k;
  int m, chunks;
  Finish finish;
};

// How canonical words become pairs. Operands are q * s * 2^-14, as in packed.cuh.
template <class Element>
struct Canonical;

template <>
struct Canonical<__nv_bfloat16> {
  using Pair = __nv_bfloat162;
  static constexpr uint32_t kSign = 0x80008000u, kCode = 0x01c001c0u;
  __device__ static void codes(uint32_t w, uint32_t (&pairs)[4]) {
    pairs[0] = ((w << 12) & kSign) | ((w << 6) & kCode);
    pairs[1] = ((w << 8) & kSign) | ((w << 2) & kCode);
    pairs[2] = ((w << 4) & kSign) | ((w >> 2) & kCode);
    pairs[3] = (w & kSign) | ((w >> 6) & kCode);
  }
  // s * 2^112 twice: the shifted byte is s * 2^-120, subnormal scales included.
  __device__ static Pair scale(uint32_t byte) {
    const uint32_t bits = byte == kE4m3Nan ? 0x7fc07fc0u : byte * 0x00100010u;
    const uint32_t step = 0x79807980u;  // 2^116
    const Pair factor = reinterpret_cast<const Pair&>(step);
    return __hmul2(__hmul2(reinterpret_cast<const Pair&>(bits), factor), factor);
  }
};

template <>
struct Canonical<__half> {
  using Pair = __half2;
  static constexpr uint32_t kSign = 0x80008000u, kCode = 0x0e000e00u;
  __device__ static void codes(uint32_t w, uint32_t (&pairs)[4]) {
    pairs[0] = ((w << 12) & kSign) | ((w << 9) & kCode);
    pairs[1] = ((w << 8) & kSign) | ((w << 5) & kCode);
    pairs[2] = ((w << 4) & kSign) | ((w << 1) & kCode);
    pairs[3] = (w & kSign) | ((w >> 3) & kCode);
  }
  __device__ static Pair scale(uint32_t byte) {
    const uint32_t bits = byte == kE4m3Nan ? 0x7e007e00u : byte * 0x00800080u;  // s * 2^-8
    return __hmul2(reinterpret_cast<const Pair&>(bits), __float2half2_rn(256.0f));
  }
};

// A lane's share of a chunk: rows g and g + 8 of each tile.
struct Load {
  uint4 codes[kTiles][2];
  uint16_t scales[kTiles][2];

  __device__ void issue(const Params& p, const int64_t (&rows)[kTiles][2], int64_t column) {
#pragma unroll
    for (int r = 0; r < kTiles; ++r) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        codes[r][h] = make_uint4(0, 0, 0, 0);
        scales[r][h] = 0;
        if (column < p.k) {
          const int64_t at = rows[r][h] * p.k + column;
          codes[r][h] = __ldcs(reinterpret_cast<const uint4*>(p.codes + at / 2));
          scales[r][h] = *reinterpret_cast<const uint16_t*>(p.scales + at / kBlock);
        }
      }
    }
  }
};

__device__ inline uint32_t word(const uint4& v, int i) {
  return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}

// x of a lane's columns, eight a word of codes.
template <int kTokenTiles>
__device__ void load_x(uint4 (&x)[kTokenTiles][4], const Params& p, int lane, int64_t column) {
#pragma unroll
  for (int nt = 0; nt < kTokenTiles; ++nt) {
    const int token = min(nt * kTokenTile + lane / 4, p.m - 1);
    const auto* row = reinterpret_cast<const uint4*>(static_cast<const uint16_t*>(p.x) +
                                                     token * p.k + (column < p.k ? column : 0));
#pragma unroll
    for (int q = 0; q < 4; ++q) x[nt][q] = column < p.k ? row[q] : make_uint4(0, 0, 0, 0);
  }
}

template <class Element, int kTokenTiles>
__device__ void multiply(float (&sums)[kTiles][kTokenTiles][4],
                         const Load& w,
                         const uint4 (&x)[kTokenTiles][4]) {
  using C = Canonical<Element>;
  using Pair = typename C::Pair;
#pragma unroll
  for (int r = 0; r < kTiles; ++r) {
    float part[kTokenTiles][4] = {};
#pragma unroll
    for (int q = 0; q < 4; ++q) {
      uint32_t pairs[2][4];
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        C::codes(word(w.codes[r][h], q), pairs[h]);
        const Pair scale = C::scale(uint32_t(w.scales[r][h]) >> (q / 2 * 8) & 0x7fu);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const Pair product = __hmul2(reinterpret_cast<const Pair&>(pairs[h][i]), scale);
          pairs[h][i] = reinterpret_cast<const uint32_t&>(product);
        }
      }
#pragma unroll
      for (int step = 0; step < 2; ++step) {
        const uint32_t a[4] = {pairs[0][2 * step], pairs[1][2 * step], pairs[0][2 * step + 1],
                               pairs[1][2 * step + 1]};
#pragma unroll
        for (int nt = 0; nt < kTokenTiles; ++nt) {
          const uint32_t low = word(x[nt][q], step), high = word(x[nt][q], step + 2);
          mma<Element>(part[nt], a, __byte_perm(low, high, 0x5410), __byte_perm(low, high, 0x7632));
        }
      }
    }
#pragma unroll
    for (int nt = 0; nt < kTokenTiles; ++nt) {
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[r][nt][i] += part[nt][i];
    }
  }
}

template <class Element, int kTokenTiles>
__global__ void __launch_bounds__(kWarps* kWarp, 2) canonical_mma_sm80(const Params p) {
  constexpr int kFloats = kTiles * kTokenTiles * 128;  // sums of a warp
  __shared__ float4 shared[kWarps * kFloats / 4];
  let_next_start();
  const int warp = int(threadIdx.x) / kWarp, lane = int(threadIdx.x) % kWarp;
  const int64_t first = int64_t(blockIdx.x) * kTiles * kTileRows;
  int64_t rows[kTiles][2];
#pragma unroll
  for (int r = 0; r < kTiles; ++r) {
#pragma unroll
    for (int h = 0; h < 2; ++h) rows[r][h] = min(first + r * kTileRows + h * 8 + lane / 4, p.n - 1);
  }
  const auto column = [&](int chunk) { return int64_t(chunk) * kChunk + lane % 4 * kLaneColumns; };
  Load next;
  next.issue(p, rows, warp < p.chunks ? column(warp) : p.k);
  wait_for_previous();
  float sums[kTiles][kTokenTiles][4] = {};
  for (int chunk = warp; chunk < p.chunks; chunk += kWarps) {
    const Load now = next;
    uint4 x[kTokenTiles][4];
    load_x<kTokenTiles>(x, p, lane, column(chunk));
    next.issue(p, rows, chunk + kWarps < p.chunks ? column(chunk + kWarps) : p.k);
    multiply<Element, kTokenTiles>(sums, now, x);
  }
#pragma unroll
  for (int r = 0; r < kTiles; ++r) {
#pragma unroll
    for (int nt = 0; nt < kTokenTiles; ++nt)
      shared[(warp * kTiles + r) * kTokenTiles * 32 + nt * 32 + lane] =
          make_float4(sums[r][nt][0], sums[r][nt][1], sums[r][nt][2], sums[r][nt][3]);
  }
  __syncthreads();
  const auto* all = reinterpret_cast<const float*>(shared);
  for (int i = int(threadIdx.x); i < kFloats; i += kWarps * kWarp) {
    const int r = i / (kTokenTiles * 128), nt = i / 128 % kTokenTiles;
    const int64_t row = first + r * kTileRows + i % 128 / 16 + i % 4 / 2 * 8;
    const int token = nt * kTokenTile + 2 * (i % 16 / 4) + i % 2;
    if (token >= p.m || row >= p.n) continue;
    float sum = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) sum += all[w * kFloats + i];
    p.finish.store(token, row, sum);
  }
}

template <class Element>
void launch_tokens(const Params& p, cudaStream_t stream) {
  const int64_t rows = kTiles * kTileRows;
  const dim3 grid(unsigned((p.n + rows - 1) / rows)), block(kWarps * kWarp);
  if (p.m <= kTokenTile)
    launch_overlapped(canonical_mma_sm80<Element, 1>, grid, block, stream, p);
  else
    launch_overlapped(canonical_mma_sm80<Element, 2>, grid, block, stream, p);
}

bool accepts(const MatmulArgs& args) {
  return args.w.codes != nullptr && args.x_codes == nullptr && args.m <= 2 * kTokenTile &&
         args.x_type != Type::kF32 && args.w.k % kLaneColumns == 0 && args.w.n < int64_t(1) << 31 &&
         args.w.k < int64_t(1) << 31;
}

CudaStatus run(const MatmulArgs& args, void* stream) {
  const Params p{args.w.codes,
                 args.w.scales,
                 args.x,
                 args.w.n,
                 args.w.k,
                 int(args.m),
                 int((args.w.k + kChunk - 1) / kChunk),
                 make_finish(args, kOperandUnit)};
  const auto s = static_cast<cudaStream_t>(stream);
  args.x_type == Type::kBF16 ? launch_tokens<__nv_bfloat16>(p, s) : launch_tokens<__half>(p, s);
  return launch_status();
}

}  // namespace

const Implementation kCanonicalFewTokens{"canonical_few_tokens", accepts, run};

}  // namespace longspur::kernels::nvfp4::cuda
