// Matrices quantised through 64 x 64 tiles in shared memory: 2-D tiles, transposed sources, and a
// matrix with its transpose from one read. Exactly as quantize_ref does, but where half precision
// may score. A tile has 256 blocks of 16 either way, one a thread; with 2-D tiles the 16
// neighbouring lanes of a tile decide together.
#include "kernels/nvfp4/cuda/kernels.cuh"
#include "kernels/nvfp4/cuda/rows_bf16_kernel.cuh"

namespace longspur::kernels::nvfp4::cuda {

namespace {

constexpr int kSize = 64, kThreads = kSize * kSize / kBlock, kPerRow = kSize / kBlock;

struct Shared {
  float x[kSize][kSize + 1];  // the odd stride spreads a column over the banks
  uint8_t scales[kPerRow][kPerRow];
};

// Where a thread's block starts in the tile: `line` across the blocks, `block` of 16 along them.
struct Place {
  int line, block;
};
__device__ Place place_of(bool tiled) {
  const int t = int(threadIdx.x);
  if (!tiled) return {t / kPerRow, t % kPerRow};
  return {t / (kPerRow * kBlock) * kBlock + t % kBlock, t / kBlock % kPerRow};
}

template <class T>
__device__ void load_tile(const TileParams& params, int64_t y0, int64_t x0, Shared& shared) {
  const T* from = static_cast<const T*>(params.x);
  for (int i = int(threadIdx.x); i < kSize * kSize; i += kThreads) {
    const int64_t y = y0 + i / kSize, x = x0 + i % kSize;
    shared.x[i / kSize][i % kSize] =
        y < params.height && x < params.width ? widen(from[y * params.ld + x]) : 0.0f;
  }
  __syncthreads();
}

template <bool kDown>
__device__ void take_block(const Shared& shared, Place place, bool hadamard, float (&x)[kBlock]) {
#pragma unroll
  for (int i = 0; i < kBlock; ++i) {
    const int along = place.block * kBlock + i;
    x[i] = kDown ? shared.x[along][place.line] : shared.x[place.line][along];
  }
  if (hadamard) rotate(x);
}

struct Decision {
  uint32_t scale;
  uint2 codes;
};

// As rows_bf16_kernel does; false where the block is not usual. x: bf16 values.
template <Rule kRule, Metric kMetric>
__device__ bool decide_in_half(const Rules& rules,
                               float amax,
                               const float (&x)[kBlock],
                               Decision& decision) {
  uint32_t w[kWords];
#pragma unroll
  for (int i = 0; i < kWords; ++i)
    w[i] = __byte_perm(__float_as_uint(x[2 * i]), __float_as_uint(x[2 * i + 1]), 0x7632);
  const uint32_t magnitude = block_magnitude(w);
  const RowScale row = row_scale(amax, rules.top);
  const float bmax = __uint_as_float(magnitude << 16);
  const float part =
      rules.rule == Rule::kStatic4 ? bmax * 0.25f : quotient(bmax, 6.0f, 1.0f / 6.0f);
  const float b = __fmul_rn(part, row.enc);
  if (!usual(b)) return false;
  uint8_t scale;
  quantize_block<kRule, kMetric>({w, magnitude, kMagnitudes}, b, row.dec, decision.codes, scale);
  decision.scale = scale;
  return true;
}

__device__ bool decide_quickly(const Side& side,
                               float amax,
                               const float (&x)[kBlock],
                               Decision& decision) {
  const Rules& rules = side.rules;
  if (!side.half_scores) return false;
  if (rules.rule == Rule::kFourOverSix && rules.metric == Metric::kMse)
    return decide_in_half<Rule::kFourOverSix, Metric::kMse>(rules, amax, x, decision);
  if (rules.rule == Rule::kFourOverSix)
    return decide_in_half<Rule::kFourOverSix, Metric::kMae>(rules, amax, x, decision);
  if (rules.rule == Rule::kSweep)
    return decide_in_half<Rule::kSweep, Metric::kMse>(rules, amax, x, decision);
  return decide_in_half<Rule::kStatic6, Metric::kMse>(rules, amax, x, decision);
}

// A side's blocks of this tile; rows and columns (of blocks) count from row0 and column0.
template <bool kDown>
__device__ void quantize_side(const Side& side,
                              Shared& shared,
                              int64_t rows,
                              int64_t columns,
                              int64_t row0,
                              int64_t column0) {
  const Place place = place_of(side.rules.tile_2d);
  const int64_t row = row0 + place.line, column = column0 + place.block;
  float x[kBlock];
  take_block<kDown>(shared, place, side.rules.hadamard, x);
  const bool inside = row < rows && column < columns;
  const int64_t amax_at = side.amax_stride == 16 ? row / 16 * 16 : row * side.amax_stride;
  const float amax = inside ? side.amax[amax_at] : 0.0f;
  const float* importance =
      side.importance != nullptr && inside ? side.importance + column * kBlock : nullptr;
  Decision decision;
  if (!decide_quickly(side, amax, x, decision)) {
    const Encoding e = encoding_of(amax, side.rules);
    if (side.borrows_scales)
      decision.scale = shared.scales[place.block][place.line / kBlock];
    else if (side.rules.tile_2d)
      decision.scale = choose_scale<true>(side.rules, e, x, importance);
    else
      decision.scale = choose_scale<false>(side.rules, e, x, importance);
    const uint64_t counter = uint64_t((row * columns + column) * kBlock);
    decision.codes = encode_block(side.rules, e, x, decision.scale, counter);
  }
  if (!kDown && side.rules.tile_2d)
    shared.scales[place.line / kBlock][place.block] = uint8_t(decision.scale);
  if (inside) {
    store_block(side.out, row, column, columns, decision.codes, decision.scale);
    const bool first = side.amax_stride == 0 ? row == 0 : true;
    if (side.out.multiplier != nullptr && column == 0 && first)
      side.out.multiplier[row] = multiplier_of(amax, side.rules.top);
  } else if (side.out.swizzled && row < (rows + 127) / 128 * 128 &&
             column < (columns + 3) / 4 * 4) {
    side.out.scales[swizzled_scale_offset(row, column, columns)] = 0;
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) tile_kernel(TileParams params, unsigned tiles_x) {
  __shared__ Shared shared;
  const int64_t y0 = int64_t(blockIdx.x / tiles_x) * kSize,
                x0 = int64_t(blockIdx.x % tiles_x) * kSize;
  load_tile<T>(params, y0, x0, shared);
  if (params.along.out.codes != nullptr)
    quantize_side<false>(params.along, shared, params.height, params.width / kBlock, y0,
                         x0 / kBlock);
  if (params.down.borrows_scales) __syncthreads();
  if (params.down.out.codes != nullptr)
    quantize_side<true>(params.down, shared, params.width, params.height / kBlock, x0, y0 / kBlock);
}

template <bool kDown>
__device__ void amax_side(
    const Side& side, const Shared& shared, float* amax, int64_t rows, int64_t row0) {
  const Place place = place_of(false);
  float x[kBlock];
  take_block<kDown>(shared, place, side.rules.hadamard, x);
  uint32_t most = magnitude_bits(x);
  auto* to = reinterpret_cast<unsigned*>(amax);
  if (side.amax_stride == 0) {
    most = __reduce_max_sync(~0u, most);
    if (threadIdx.x % 32 == 0) atomicMax(to, amax_bits(most));
    return;
  }
  const int64_t row = row0 + place.line;
  most = max(most, __shfl_xor_sync(~0u, most, 1));
  most = max(most, __shfl_xor_sync(~0u, most, 2));
  if (place.block == 0 && row < rows)
    atomicMax(to + row / side.amax_stride * side.amax_stride, amax_bits(most));
}

// Maxima do not depend on the order of the atomic operations.
template <class T>
__global__ void __launch_bounds__(kThreads)
    tile_amax_kernel(TileParams params, unsigned tiles_x, float* along, float* down) {
  __shared__ Shared shared;
  const int64_t y0 = int64_t(blockIdx.x / tiles_x) * kSize,
                x0 = int64_t(blockIdx.x % tiles_x) * kSize;
  load_tile<T>(params, y0, x0, shared);
  if (along != nullptr) amax_side<false>(params.along, shared, along, params.height, y0);
  if (down != nullptr) amax_side<true>(params.down, shared, down, params.width, x0);
}

struct Tiles {
  unsigned x, count;
};
Tiles tiles_of(const TileParams& params) {
  // A swizzled layout pads 128 rows of either side; its columns, 4 blocks, are one tile.
  const int64_t to_y = params.along.out.swizzled ? 128 : kSize;
  const int64_t to_x = params.down.out.swizzled ? 128 : kSize;
  const int64_t y = (params.height + to_y - 1) / to_y * to_y / kSize;
  const int64_t x = (params.width + to_x - 1) / to_x * to_x / kSize;
  return {unsigned(x), unsigned(x * y)};
}

template <class T>
void launch(const TileParams& params, cudaStream_t stream) {
  const Tiles tiles = tiles_of(params);
  tile_kernel<T><<<tiles.count, kThreads, 0, stream>>>(params, tiles.x);
}

template <class T>
void launch_amax(const TileParams& params, float* along, float* down, cudaStream_t stream) {
  const Tiles tiles = tiles_of(params);
  tile_amax_kernel<T><<<tiles.count, kThreads, 0, stream>>>(params, tiles.x, along, down);
}

}  // namespace

void launch_tiles(const TileParams& params, cudaStream_t stream) {
  if (params.dtype == DType::kF32) launch<float>(params, stream);
  if (params.dtype == DType::kBF16) launch<__nv_bfloat16>(params, stream);
  if (params.dtype == DType::kF16) launch<__half>(params, stream);
}

void launch_tile_amax(const TileParams& params, float* along, float* down, cudaStream_t stream) {
  if (params.dtype == DType::kF32) launch_amax<float>(params, along, down, stream);
  if (params.dtype == DType::kBF16) launch_amax<__nv_bfloat16>(params, along, down, stream);
  if (params.dtype == DType::kF16) launch_amax<__half>(params, along, down, stream);
}

}  // namespace longspur::kernels::nvfp4::cuda
