// Canonical weights to the packed order of packed.cuh. Runs once a matrix.
#include <cuda_runtime.h>

#include "kernels/common/cuda/launch.cuh"
#include "kernels/common/cuda/status.cuh"
#include "kernels/nvfp4/codec.h"
#include "kernels/nvfp4/cuda/matmul.h"
#include "kernels/nvfp4/cuda/packed.cuh"

namespace longspur::kernels::nvfp4::cuda {

namespace {

constexpr int kWarps = 8;
constexpr int kBlockColumns = 64, kBlockBytes = 36;

struct Canonical {
  const uint8_t* codes;
  const uint8_t* scales;
  int64_t n, k;

  // Zero beyond the matrix: padding.
  __device__ uint32_t scale(int64_t row, int64_t column) const {
    if (row >= n || column >= k) return 0;
    return scales[row * (k / kBlock) + column / kBlock] & 0x7fu;
  }
  // A pair of codes; zero where the scale is zero or not a number.
  __device__ uint32_t pair(int64_t row, int64_t column) const {
    const uint32_t s = scale(row, column);
    return s == 0 || s == kE4m3Nan ? 0u : codes[row * (k / 2) + column / 2];
  }
};

// GGUF's blocks: codes of elements j and j + 8 of 16 in one byte.
struct Blocks {
  const uint8_t* data;
  int64_t n, k;

  __device__ const uint8_t* block(int64_t row, int64_t column) const {
    return data + (row * (k / kBlockColumns) + column / kBlockColumns) * kBlockBytes;
  }
  __device__ uint32_t scale(int64_t row, int64_t column) const {
    if (row >= n || column >= k) return 0;
    return block(row, column)[column % kBlockColumns / kBlock] & 0x7fu;
  }
  __device__ uint32_t pair(int64_t row, int64_t column) const {
    const uint32_t s = scale(row, column);
    if (s == 0 || s == kE4m3Nan) return 0;
    const int64_t sub = column % kBlockColumns / kBlock, i = column % kBlock;
    const uint8_t* bytes = block(row, column) + kBlockColumns / kBlock + sub * 8 + i % 8;
    const int shift = i < 8 ? 0 : 4;
    return (bytes[0] >> shift & 15u) | (bytes[1] >> shift & 15u) << 4;
  }
};

__device__ uint32_t e5m3_of(uint32_t e4m3) {
  if (e4m3 == 0) return 0;
  if (e4m3 == kE4m3Nan) return 0xff;
  if (e4m3 >= 8) return e4m3 + 64;  // bias 7 to 15
  const uint32_t top = 31u - uint32_t(__clz(int(e4m3)));
  return (top + 6) << 3 | ((e4m3 << (3 - top)) & 7u);
}

// The 16 bits that hold a code as element of register p.
__device__ uint32_t place(uint32_t code, int p) {
  const uint32_t sign = code >> 3, magnitude = code & 7u;
  switch (p) {
    case 0:
      return sign << 15 | magnitude << 6;
    case 1:
      return sign << 12 | magnitude << 3;
    case 2:
      return sign << 13 | magnitude << 9;
    default:
      return sign << 14 | magnitude;
  }
}

template <class Source>
__device__ uint32_t word_of(const Source& w, int64_t row, int64_t column) {
  uint32_t word = 0;
#pragma unroll
  for (int p = 0; p < 4; ++p) {
    const uint32_t pair = w.pair(row + 8 * (p % 2), column + 8 * (p / 2));
    word |= place(pair & 15u, p) | place(pair >> 4 & 15u, p) << 16;
  }
  return word;
}

// A warp a tile.
template <class Source>
__global__ void __launch_bounds__(kWarps* kWarp)
    pack_kernel(Source w, int64_t tiles, int64_t chunks, uint8_t* packed) {
  const int64_t tile = int64_t(blockIdx.x) * kWarps + threadIdx.x / kWarp;
  if (tile >= tiles) return;
  const int lane = int(threadIdx.x) % kWarp, g = lane / 4, t = lane % 4;
  const int64_t group = tile / (chunks * kGroupTiles);
  const int64_t chunk = tile / kGroupTiles % chunks;
  const int64_t row = group * kGroupRows + tile % kGroupTiles * kTileRows + g;
  const int64_t column = chunk * kChunk;
  uint8_t* to = packed + tile * kTileBytes;
  uint32_t words[kSteps];
#pragma unroll
  for (int j = 0; j < kSteps; ++j) words[j] = word_of(w, row, column + 16 * j + 2 * t);
  auto* codes = reinterpret_cast<uint4*>(to);
  codes[lane] = make_uint4(words[0], words[1], words[2], words[3]);
  codes[kWarp + lane] = make_uint4(words[4], words[5], words[6], words[7]);
  const int64_t at = column + 32 * t;  // lane (g, t) makes the scale word of steps 2 t, 2 t + 1
  reinterpret_cast<uint32_t*>(to + kCodeBytes)[lane] =
      e5m3_of(w.scale(row, at)) | e5m3_of(w.scale(row, at + 16)) << 8 |
      e5m3_of(w.scale(row + 8, at)) << 16 | e5m3_of(w.scale(row + 8, at + 16)) << 24;
}

template <class Source>
CudaStatus launch(const Source& w, void* packed, void* stream) {
  const int64_t tiles = packed_bytes(w.n, w.k) / kTileBytes;
  const int64_t blocks = (tiles + kWarps - 1) / kWarps;
  pack_kernel<<<dim3(unsigned(blocks)), kWarps * kWarp, 0, static_cast<cudaStream_t>(stream)>>>(
      w, tiles, (w.k + kChunk - 1) / kChunk, static_cast<uint8_t*>(packed));
  return launch_status();
}

}  // namespace

CudaStatus pack(const Weights& w, void* packed, void* stream) {
  if (!matmul_accepts(1, w.n, w.k)) return "nvfp4 pack: K must be a positive multiple of 16";
  return launch(Canonical{w.codes, w.scales, w.n, w.k}, packed, stream);
}

CudaStatus pack_blocks(const void* blocks, int64_t n, int64_t k, void* packed, void* stream) {
  if (n < 1 || k < 1 || k % kBlockColumns != 0)
    return "nvfp4 pack: K must be a positive multiple of 64";
  return launch(Blocks{static_cast<const uint8_t*>(blocks), n, k}, packed, stream);
}

}  // namespace longspur::kernels::nvfp4::cuda
