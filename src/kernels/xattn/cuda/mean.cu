// The term `mean`: every query against the means of key blocks, the softmax of each, and the mean
// of the 128 rows of a query block, without storing a row: a block of threads takes a query block,
// keeps the powers of up to 384 key blocks in shared memory until the rows' sums are known, and
// adds them up over the rows by one product of the tensor cores. Key blocks before the last 512 are
// multiplied twice.
#include <cuda_runtime.h>

#include <algorithm>

#include "kernels/xattn/cuda/product.cuh"

namespace longspur::kernels::xattn::cuda {

namespace {

constexpr int kTile = 128;     // query rows, and key blocks a turn
constexpr int kKeptTiles = 3;  // of powers
constexpr int kStages = 2, kQueryStages = 2;
constexpr int kParts = 3;                            // of a factor, as bf16
constexpr int kPartBytes = kTile * 2;                // one part of all rows
constexpr int kPowerPitch = kKeptTiles * kTile * 2;  // bytes of a row
constexpr int kPowerBytes = kTile * kPowerPitch;
constexpr float kLargestSum = 1e30f;

template <int kHeadDim>
struct Shape {
  static constexpr int kDim = kHeadDim, kHalves = kDim / kHalf;
  static constexpr int kHalfBytes = kTile * kHalf * 2, kTileBytes = kHalves * kHalfBytes;
  static constexpr int kBytes = kTileBytes * (kQueryStages + kStages) + kPowerBytes +
                                (kParts + 1) * kPartBytes + (kQueryStages + kStages) * 16 + 1024;
  static_assert(kBytes <= kSharedBytes);
};

template <class S>
struct Shared {
  __device__ explicit Shared(uint32_t address)
      : queries((address + 1023u) / 1024u * 1024u),
        means(queries + kQueryStages * S::kTileBytes),
        powers(means + kStages * S::kTileBytes),
        factors(powers + kPowerBytes),
        mean_ring{factors + (kParts + 1) * kPartBytes,
                  factors + (kParts + 1) * kPartBytes + kStages * 8},
        query_ring{mean_ring.empty + kStages * 8, mean_ring.empty + (kStages + kQueryStages) * 8} {}
  uint32_t queries, means, powers, factors;
  Ring<kStages> mean_ring;
  Ring<kQueryStages> query_ring;
};

// A query block of a head; the longest first.
struct Item {
  int64_t block_row;
  int group, head, block, q0, rows, columns, tiles;

  __device__ Item(const ScorePlan& p, int64_t at) {
    const int64_t heads = int64_t(p.batch) * p.heads;
    const int i = p.blocks - 1 - int(at / heads), bh = int(at % heads);
    group = bh / p.group;
    block_row = (int64_t(group) * p.blocks + i) * p.group + bh % p.group;
    head = bh % p.heads;
    block = p.first_block + i;
    const Sequence s = Sequence::of(p, bh / p.heads);
    const int row0 = block * kTile;
    q0 = s.q0 + row0;
    rows = max(min(s.n - row0, kTile), 0);
    columns = rows > 0 ? div_up(s.visible(row0 + rows - 1, p.causal), p.block) : 0;
    tiles = div_up(columns, kTile);
  }
  // Tiles in the order of their turns: all, then those whose powers were not kept again.
  __device__ int far() const { return max(tiles - kKeptTiles, 0); }
  __device__ int turns() const { return tiles + far(); }
  __device__ int tile(int turn) const { return turn < tiles ? turn : turn - tiles; }
};

template <class S>
__device__ void produce(const ScorePlan& p,
                        const CUtensorMap& queries,
                        const CUtensorMap& means,
                        const Shared<S>& shared) {
  const int64_t items = p.block_rows();
  int n = 0, live = 0;
  for (int64_t at = blockIdx.x; at < items; at += gridDim.x) {
    const Item item(p, at);
    if (item.tiles == 0) continue;
    shared.query_ring.wait_empty(live);
    const uint32_t barrier = shared.query_ring.barrier(live);
    const uint32_t queries_to = shared.queries + uint32_t(live++ % kQueryStages * S::kTileBytes);
    expect_bytes(barrier, S::kTileBytes);
    for (int half = 0; half < S::kHalves; ++half)
      copy_box3(queries_to + uint32_t(half * S::kHalfBytes), &queries, half * kHalf, item.q0,
                item.head, barrier);
    for (int turn = 0; turn < item.turns(); ++turn, ++n) {
      const uint32_t to = shared.means + uint32_t(n % kStages * S::kTileBytes);
      shared.mean_ring.wait_empty(n);
      expect_bytes(shared.mean_ring.barrier(n), S::kTileBytes);
      for (int half = 0; half < S::kHalves; ++half)
        copy_box(to + uint32_t(half * S::kHalfBytes), &means, half * kHalf,
                 item.group * p.key_blocks + item.tile(turn) * kTile, shared.mean_ring.barrier(n));
    }
  }
}

__device__ inline void consumers_sync() {
  asm volatile("bar.sync 1, %0;" ::"n"(kConsumerThreads) : "memory");
}

// Where the powers of 8 columns of a row lie; chunks are swizzled against conflicts of banks.
__device__ inline uint32_t power_address(uint32_t powers, int row, int chunk) {
  return powers + uint32_t(row * kPowerPitch + ((chunk ^ (row & 7)) << 4));
}

// Two rows of a thread.
struct Rows {
  int row[2];    // of the query block
  int limit[2];  // key blocks seen
  float reference[2], sum[2];

  __device__ Rows(const ScorePlan& p, const Item& item, const Sequence& s) {
    const int warp = int(threadIdx.x) / kWarp, lane = int(threadIdx.x) % kWarp;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      row[h] = warp * 16 + lane / 4 + h * 8;
      limit[h] = row[h] < item.rows
                     ? div_up(s.visible(item.block * kTile + row[h], p.causal), p.block)
                     : 0;
      reference[h] = sum[h] = 0;
    }
  }
  __device__ bool is_cut(int end) const { return __any_sync(~0u, min(limit[0], limit[1]) < end); }
};

// Multiplies the powers that this thread has kept of a row, of `tiles` tiles.
__device__ void rescale(uint32_t powers, int row, int tiles, float factor) {
  for (int chunk = 0; chunk < tiles * 16; ++chunk) {
    const uint32_t at = power_address(powers, row, chunk) + threadIdx.x % 4 * 4;
    uint32_t bits = 0;
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(bits) : "r"(at));
    const __nv_bfloat162 pair = reinterpret_cast<const __nv_bfloat162&>(bits);
    const __nv_bfloat162 scaled =
        __floats2bfloat162_rn(__low2float(pair) * factor, __high2float(pair) * factor);
    asm volatile("st.shared.u32 [%0], %1;" ::"r"(at),
                 "r"(reinterpret_cast<const uint32_t&>(scaled)));
  }
}

// Powers of a tile of products, in pairs of columns; with their sums per thread.
__device__ void take_powers(float scale2,
                            const Rows& rows,
                            const float (&x)[64],
                            uint32_t (&powers)[32],
                            float (&sums)[2]) {
  sums[0] = sums[1] = 0;
#pragma unroll
  for (int i = 0; i < 32; ++i) {
    const float reference = rows.reference[i % 2];
    const float a = power_of_two(fmaf(x[i * 2], scale2, -reference));
    const float b = power_of_two(fmaf(x[i * 2 + 1], scale2, -reference));
    sums[i % 2] += a + b;
    const __nv_bfloat162 pair = __floats2bfloat162_rn(a, b);
    powers[i] = reinterpret_cast<const uint32_t&>(pair);
  }
}

// The largest products of a tile as new references, where they are larger; what has been summed up
// and kept (of `kept_tiles`) follows.
__device__ void move_references(
    float scale2, Rows& rows, const float (&x)[64], bool first, uint32_t powers, int kept_tiles) {
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    float top = negative_infinity();
#pragma unroll
    for (int i = 0; i < 32; ++i) top = fmaxf(top, x[i / 2 * 4 + h * 2 + i % 2] * scale2);
    top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
    top = fmaxf(top, __shfl_xor_sync(~0u, top, 2));
    if (top == negative_infinity()) continue;
    if (!first) {
      if (!(top > rows.reference[h])) continue;
      const float factor = power_of_two(rows.reference[h] - top);
      rescale(powers, rows.row[h], kept_tiles, factor);
      rows.sum[h] *= factor;
    }
    rows.reference[h] = top;
  }
}

__device__ void keep_powers(const Rows& rows,
                            const uint32_t (&pairs)[32],
                            uint32_t powers,
                            int kept_tile) {
#pragma unroll
  for (int i = 0; i < 32; ++i) {
    const uint32_t at = power_address(powers, rows.row[i % 2], kept_tile * 16 + i / 2);
    asm volatile("st.shared.u32 [%0], %1;" ::"r"(at + threadIdx.x % 4 * 4), "r"(pairs[i])
                 : "memory");
  }
}

__device__ void mask(const Rows& rows, int first_column, float (&x)[64]) {
#pragma unroll
  for (int e = 0; e < 64; ++e) {
    const int column = first_column + e / 4 * 8 + int(threadIdx.x) % 4 * 2 + e % 2;
    if (column >= rows.limit[e % 4 / 2]) x[e] = negative_infinity();
  }
}

// scores[column] of the kept tiles: the rows' powers times the rows' factors. Rows of the product's
// first operand are the three parts of the factors, and zeros.
__device__ void add_rows(uint32_t powers, uint32_t factors, int tiles, float* scores, int columns) {
  const int warp = int(threadIdx.x) / kWarp, lane = int(threadIdx.x) % kWarp;
  uint32_t a[kTile / 16][4];
#pragma unroll
  for (int k = 0; k < kTile / 16; ++k) {
    const uint32_t at =
        factors + uint32_t(min(lane / 4, kParts) * kPartBytes + k * 32 + lane % 4 * 4);
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(a[k][0]) : "r"(at));
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(a[k][2]) : "r"(at + 16));
    a[k][1] = a[k][3] = 0;
  }
  for (int chunk = warp; chunk < tiles * 16; chunk += kConsumerThreads / kWarp) {
    uint4 b[kTile / 32];
#pragma unroll
    for (int k = 0; k < kTile / 32; ++k) {
      // Lane l gives the address of row l of 32.
      asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                   : "=r"(b[k].x), "=r"(b[k].y), "=r"(b[k].z), "=r"(b[k].w)
                   : "r"(power_address(powers, k * 32 + lane, chunk)));
    }
    float sums[2][4] = {};
#pragma unroll
    for (int k = 0; k < kTile / 32; ++k) {
      mma<__nv_bfloat16>(sums[0], a[k * 2], b[k].x, b[k].y);
      mma<__nv_bfloat16>(sums[1], a[k * 2 + 1], b[k].z, b[k].w);
    }
    float total[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      total[i] = sums[0][i] + sums[1][i];
      total[i] += __shfl_down_sync(~0u, total[i], 4) + __shfl_down_sync(~0u, total[i], 8);
    }
    const int column = chunk * 8 + lane * 2;
    if (lane < 4 && column < columns) scores[column] = total[0];
    if (lane < 4 && column + 1 < columns) scores[column + 1] = total[1];
  }
}

template <class Element, class S>
__device__ void multiply(uint32_t queries, uint32_t means, float (&x)[64]) {
  wgmma_fence();
#pragma unroll
  for (int k = 0; k < S::kDim / 16; ++k) {
    const uint64_t a = operand_descriptor(queries + uint32_t(k / 4 * S::kHalfBytes));
    const uint64_t b = operand_descriptor(means + uint32_t(k / 4 * S::kHalfBytes));
    SharedWgmma<Element, 128>::run(x, a + uint64_t(k % 4 * 2), b + uint64_t(k % 4 * 2), k == 0);
  }
  wgmma_commit();
  wgmma_wait<0>();
  hold_sums(x);
}

// The factor of a row's powers: one over its sum and the number of live rows.
__device__ void store_factors(
    const ScorePlan& p, const Item& item, const Sequence& s, const Rows& rows, uint32_t factors) {
  const int dead = p.causal ? max(s.n - s.m - item.block * kTile, 0) : 0;
  const float live = float(max(item.rows - dead, 1));
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    float sum = rows.sum[h] + __shfl_xor_sync(~0u, rows.sum[h], 1);
    sum += __shfl_xor_sync(~0u, sum, 2);
    const float factor = rows.limit[h] > 0 ? 1.0f / (sum * live) : 0.0f;
    if (threadIdx.x % 4 != 0) continue;
    // Three parts add up to the factor, to fp32's precision.
    float rest = factor;
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      const __nv_bfloat16 v = __float2bfloat16_rn(rest);
      rest -= __bfloat162float(v);
      const uint32_t at = factors + uint32_t(part * kPartBytes + rows.row[h] * 2);
      asm volatile("st.shared.u16 [%0], %1;" ::"r"(at), "h"(__bfloat16_as_ushort(v)) : "memory");
    }
  }
}

template <class Element, class S>
__device__ void consume(const ScorePlan& p, const Shared<S>& shared) {
  const int consumer = int(threadIdx.x) / kGroupThreads;
  const int64_t items = p.block_rows();
  int n = 0, live = 0;
  for (int64_t at = blockIdx.x; at < items; at += gridDim.x) {
    const Item item(p, at);
    const int tiles = __shfl_sync(~0u, item.tiles, 0);
    if (tiles == 0) continue;
    const Sequence s = Sequence::of(p, item.group / p.kv_heads);
    Rows rows(p, item, s);
    const int far = max(tiles - kKeptTiles, 0), turns = tiles + far;
    float* scores = p.mean_scores + item.block_row * p.pitch;
    const uint32_t queries =
        shared.queries + uint32_t(live % kQueryStages * S::kTileBytes + consumer * 64 * 128);
    shared.query_ring.wait_full(live);
    for (int turn = 0; turn < turns; ++turn, ++n) {
      float x[64];
      shared.mean_ring.wait_full(n);
      multiply<Element, S>(queries, shared.means + uint32_t(n % kStages * S::kTileBytes), x);
      shared.mean_ring.release(n);
      if (turn + 1 == turns) shared.query_ring.release(live);
      const bool again = turn >= tiles;
      const int tile = again ? turn - tiles : turn;
      const int slot = again ? tile % kKeptTiles : tile - far;  // below 0: not kept
      if (rows.is_cut((tile + 1) * kTile)) mask(rows, tile * kTile, x);
      if (turn == 0) move_references(p.scale2, rows, x, true, shared.powers, 0);
      uint32_t powers[32];
      float sums[2];
      take_powers(p.scale2, rows, x, powers, sums);
      if (!again) {
        if (__any_sync(~0u, sums[0] > kLargestSum || sums[1] > kLargestSum)) {
          move_references(p.scale2, rows, x, false, shared.powers, max(slot, 0));
          take_powers(p.scale2, rows, x, powers, sums);
        }
        rows.sum[0] += sums[0];
        rows.sum[1] += sums[1];
      }
      if (slot >= 0) keep_powers(rows, powers, shared.powers, slot);
      if (turn + 1 == tiles) store_factors(p, item, s, rows, shared.factors);
      const bool full =
          turn + 1 == tiles || (again && (slot + 1 == kKeptTiles || turn + 1 == turns));
      if (!full) continue;
      consumers_sync();
      const int first = (tile - slot) * kTile;
      add_rows(shared.powers, shared.factors, slot + 1, scores + first, item.columns - first);
      consumers_sync();
    }
    ++live;
  }
}

template <class Element, class S>
__global__ void __launch_bounds__(kProductThreads, 1)
    mean_wgmma_sm90(const __grid_constant__ CUtensorMap queries,
                    const __grid_constant__ CUtensorMap means,
                    const ScorePlan p) {
  extern __shared__ uint8_t memory[];
  const Shared<S> shared(shared_address(memory));
  if (threadIdx.x == 0) {
    shared.mean_ring.init();
    shared.query_ring.init();
    publish_barriers();
  }
  // The rows of zeros below the parts of factors.
  if (threadIdx.x < kPartBytes / 4)
    asm volatile(
        "st.shared.u32 [%0], %1;" ::"r"(shared.factors + kParts * kPartBytes + threadIdx.x * 4),
        "r"(0)
        : "memory");
  __syncthreads();
  wait_for_previous();
  if (threadIdx.x >= kConsumerThreads) {
    give_registers<40>();
    if (threadIdx.x == kConsumerThreads) produce<S>(p, queries, means, shared);
  } else {
    take_registers<232>();
    consume<Element, S>(p, shared);
  }
}

template <class Element, class S>
cudaError_t launch(const ScorePlan& p, cudaStream_t stream) {
  CUtensorMap queries, means;
  const int64_t groups = int64_t(p.batch) * p.kv_heads;
  const bool mapped =
      make_map<3>(queries, p.q, {p.dim, p.total_q, p.heads}, {p.q_token, p.q_head},
                  {kHalf, kTile, 1}) &&
      make_map<2>(means, p.key_means16, {p.dim, groups * p.key_blocks}, {p.dim}, {kHalf, kTile});
  if (!mapped) return cudaErrorNotSupported;
  const dim3 grid(unsigned(std::min<int64_t>(multiprocessors(), p.block_rows())));
  return launch_shared(mean_wgmma_sm90<Element, S>, grid, kProductThreads, 1, S::kBytes, stream,
                       queries, means, p);
}

}  // namespace

cudaError_t run_mean(const ScorePlan& p, Type type, cudaStream_t stream) {
  if (p.total_q == 0) return cudaSuccess;
  if (p.dim == 128) {
    return type == Type::kBF16 ? launch<__nv_bfloat16, Shape<128>>(p, stream)
                               : launch<__half, Shape<128>>(p, stream);
  }
  return type == Type::kBF16 ? launch<__nv_bfloat16, Shape<64>>(p, stream)
                             : launch<__half, Shape<64>>(p, stream);
}

}  // namespace longspur::kernels::xattn::cuda
