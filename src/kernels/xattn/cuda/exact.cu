// Masses of the terms against exact keys: the rows of all heads of a KV group times the group's
// keys, 256 rows x 128 keys at a time. A warpgroup has two units of 64 rows and works out the
// powers of one while the tensor cores multiply the other. Each row's sum over a key block leaves
// as one log2.
//
// Powers are taken against a reference of each row, which is the largest product of an earlier
// tile: sums that grow too large for fp32 are taken again with a new one, and those that vanish are
// of blocks whose share of the row is below 2^-100.
#include <cuda_runtime.h>

#include <algorithm>

#include "kernels/xattn/cuda/product.cuh"

namespace longspur::kernels::xattn::cuda {

namespace {

constexpr int kTileRows = 256, kTileKeys = 128, kPieceTiles = 32, kUnits = 2;
constexpr float kLargestSum = 1e30f;

template <int kHeadDim>
struct Shape {
  static constexpr int kDim = kHeadDim, kHalves = kDim / kHalf;
  static constexpr int kStages = kDim == 128 ? 3 : 6;
  static constexpr int kRowsHalfBytes = kTileRows * kHalf * 2,
                       kRowsBytes = kHalves * kRowsHalfBytes;
  static constexpr int kKeysHalfBytes = kTileKeys * kHalf * 2,
                       kKeysBytes = kHalves * kKeysHalfBytes;
  static constexpr int kNormBytes = kTileKeys * 4;
  static constexpr int kBytes =
      2 * kRowsBytes + kStages * (kKeysBytes + kNormBytes) + (2 * kStages + 4) * 8 + 1024;
  static_assert(kBytes <= kSharedBytes);
};

template <class S>
struct Shared {
  __device__ explicit Shared(uint32_t address)
      : rows((address + 1023u) / 1024u * 1024u),
        keys(rows + 2 * S::kRowsBytes),
        norms(keys + S::kStages * S::kKeysBytes),
        key_ring{norms + S::kStages * S::kNormBytes,
                 norms + uint32_t(S::kStages * (S::kNormBytes + 8))},
        row_ring{key_ring.empty + uint32_t(S::kStages * 8),
                 key_ring.empty + uint32_t(S::kStages * 8 + 16)} {}
  uint32_t rows, keys, norms;  // two buffers of rows; stages
  Ring<S::kStages> key_ring;
  Ring<2> row_ring;
};

WorkShape work_shape(const ScorePlan& p) {
  const int block_rows = p.exact_rows * p.group, keys = kTileKeys * kPieceTiles;
  return {div_up(p.blocks * block_rows, kTileRows),
          std::max(div_up(p.max_k, keys), 1),
          64,
          0,
          block_rows,
          keys};
}

template <class S, bool kBias>
__device__ void produce(const ScorePlan& p,
                        const CUtensorMap& rows,
                        const CUtensorMap& keys,
                        const Shared<S>& shared) {
  const int count = *p.work_count;
  const int group_rows = p.blocks * p.group * p.exact_rows;
  int n = 0, pieces = 0;
  for (int w = int(blockIdx.x); w < count; w += int(gridDim.x), ++pieces) {
    const Work work = p.work[w];
    const int g = work.group % p.kv_heads, k0 = p.cu_k[work.group / p.kv_heads];
    const float* norms = p.norms + int64_t(work.group) * p.norm_pitch;
    for (int tile = 0; tile < work.columns; ++tile, ++n) {
      const int first = (work.column * kPieceTiles + tile) * kTileKeys;
      if (tile == 0) {
        const uint32_t to = shared.rows + uint32_t(pieces % 2 * S::kRowsBytes);
        shared.row_ring.wait_empty(pieces);
        expect_bytes(shared.row_ring.barrier(pieces), S::kRowsBytes);
        for (int half = 0; half < S::kHalves; ++half)
          copy_box(to + uint32_t(half * S::kRowsHalfBytes), &rows, half * kHalf,
                   work.group * group_rows + work.unit * kTileRows,
                   shared.row_ring.barrier(pieces));
      }
      const uint32_t full = shared.key_ring.barrier(n), stage = uint32_t(n % S::kStages);
      shared.key_ring.wait_empty(n);
      expect_bytes(full, S::kKeysBytes + (kBias ? S::kNormBytes : 0));
      for (int half = 0; half < S::kHalves; ++half)
        copy_box3(shared.keys + stage * S::kKeysBytes + uint32_t(half * S::kKeysHalfBytes), &keys,
                  half * kHalf, k0 + first, g, full);
      if (kBias)
        copy_bulk(shared.norms + stage * S::kNormBytes, norms + first, S::kNormBytes, full);
    }
  }
}

// Two rows of a unit in a thread: 16 warp + lane / 4, and 8 further.
struct UnitRows {
  int row[2];    // of the masses
  int limit[2];  // keys seen
  float bias[2];
  float reference[2];  // log2
  float2 held[2];      // masses of two of the last eight key blocks

  __device__ void start(const ScorePlan& p, const Work& work, int first_row) {
    const int lane = int(threadIdx.x) % kWarp;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int at = first_row + int(threadIdx.x) % kGroupThreads / kWarp * 16 + lane / 4 + h * 8;
      const int local = at / p.exact_rows, r = at % p.exact_rows;
      const bool exists = local < p.blocks * p.group;
      const int block_row = work.group * p.blocks * p.group + local;
      row[h] = block_row * p.rows + r;
      limit[h] = exists ? p.limits[row[h]] : 0;
      bias[h] = p.has_bias && exists ? p.bias[block_row * p.exact_rows + r] : 0.0f;
      reference[h] = 0;
      held[h] = make_float2(negative_infinity(), negative_infinity());
    }
  }
  // Whether some row of the warp sees a part of the tile. Rows that see nothing of it need no mask:
  // nobody reads what is stored for them.
  __device__ bool is_cut(int first_key) const {
    bool cut = false;
#pragma unroll
    for (int h = 0; h < 2; ++h)
      cut = cut || (limit[h] > first_key && limit[h] < first_key + kTileKeys);
    return __any_sync(~0u, cut);
  }
};

template <class S, int kBlock, bool kBias>
struct Unit {
  static constexpr int kBlocks = kTileKeys / kBlock;  // of a tile

  __device__ static float2 norm(uint32_t norms, int i) {
    float2 v{};
    if (kBias) {
      asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];"
                   : "=f"(v.x), "=f"(v.y)
                   : "r"(norms + uint32_t(i * 32 + int(threadIdx.x) % 4 * 8)));
    }
    return v;
  }

  // Sums over the key blocks of a tile, of one lane of a quad.
  __device__ static void add_powers(const ScorePlan& p,
                                    const UnitRows& rows,
                                    const float (&x)[64],
                                    uint32_t norms,
                                    float (&sums)[2][kBlocks]) {
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      const float2 k = norm(norms, i);
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const float a = kBias ? fmaf(rows.bias[h], k.x, -rows.reference[h]) : -rows.reference[h];
        const float b = kBias ? fmaf(rows.bias[h], k.y, -rows.reference[h]) : -rows.reference[h];
        sums[h][i * kBlocks / 16] += power_of_two(fmaf(x[i * 4 + h * 2], p.scale2, a)) +
                                     power_of_two(fmaf(x[i * 4 + h * 2 + 1], p.scale2, b));
      }
    }
  }

  // Element e of chunk i, masked.
  __device__ static float product(const ScorePlan& p,
                                  const UnitRows& rows,
                                  const float (&x)[64],
                                  float2 norm,
                                  int first_key,
                                  int i,
                                  int e) {
    const int h = e / 2, key = first_key + i * 8 + int(threadIdx.x) % 4 * 2 + e % 2;
    const float bias = kBias ? rows.bias[h] * (e % 2 == 0 ? norm.x : norm.y) : 0.0f;
    return key < rows.limit[h] ? fmaf(x[i * 4 + e], p.scale2, bias) : negative_infinity();
  }

  // The same with a mask and new references. x stays as it is: the tensor cores are to write there
  // next, and must not wait for another copy.
  __device__ static void add_exactly(const ScorePlan& p,
                                     UnitRows& rows,
                                     const float (&x)[64],
                                     uint32_t norms,
                                     int first_key,
                                     float (&sums)[2][kBlocks]) {
    float top[2] = {negative_infinity(), negative_infinity()};
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      const float2 k = norm(norms, i);
#pragma unroll
      for (int e = 0; e < 4; ++e)
        top[e / 2] = fmaxf(top[e / 2], product(p, rows, x, k, first_key, i, e));
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      top[h] = fmaxf(top[h], __shfl_xor_sync(~0u, top[h], 1));
      top[h] = fmaxf(top[h], __shfl_xor_sync(~0u, top[h], 2));
      if (top[h] != negative_infinity()) rows.reference[h] = top[h];
#pragma unroll
      for (int i = 0; i < kBlocks; ++i) sums[h][i] = 0;
    }
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      const float2 k = norm(norms, i);
#pragma unroll
      for (int e = 0; e < 4; ++e)
        sums[e / 2][i * kBlocks / 16] +=
            power_of_two(product(p, rows, x, k, first_key, i, e) - rows.reference[e / 2]);
    }
  }

  __device__ static bool too_large(const float (&sums)[2][kBlocks]) {
    bool large = false;
#pragma unroll
    for (int i = 0; i < kBlocks; ++i)
      large = large || sums[0][i] > kLargestSum || sums[1][i] > kLargestSum;
    return __any_sync(~0u, large);
  }

  // One tile of 64 rows x 128 keys; `tile` counts from the first key of the sequence.
  __device__ static void run(const ScorePlan& p,
                             UnitRows& rows,
                             const float (&x)[64],
                             uint32_t norms,
                             int tile,
                             bool first) {
    float sums[2][kBlocks] = {};
    const int first_key = tile * kTileKeys;
    bool exactly = first || rows.is_cut(first_key);
    if (!exactly) {
      add_powers(p, rows, x, norms, sums);
      exactly = too_large(sums);
    }
    if (exactly) add_exactly(p, rows, x, norms, first_key, sums);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
#pragma unroll
      for (int i = 0; i < kBlocks; ++i) {
        float sum = sums[h][i] + __shfl_xor_sync(~0u, sums[h][i], 1);
        sum += __shfl_xor_sync(~0u, sum, 2);
        const float mass = rows.reference[h] + __log2f(sum);
        const int block =
            (tile * kBlocks + i) % 8;  // of eight, which the quad's lanes hold in pairs
        if (int(threadIdx.x) % 4 != block / 2) continue;
        if (block % 2 == 0)
          rows.held[h].x = mass;
        else
          rows.held[h].y = mass;
      }
    }
  }

  // Stores the eight key blocks that end with those of `tile`, or as many as there are.
  __device__ static void flush(const ScorePlan& p, UnitRows& rows, int tile) {
    const int block = tile * kBlocks / 8 * 8 + int(threadIdx.x) % 4 * 2;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      if (rows.limit[h] > 0 && block < p.pitch)
        *reinterpret_cast<float2*>(p.masses + int64_t(rows.row[h]) * p.pitch + block) =
            rows.held[h];
      rows.held[h] = make_float2(negative_infinity(), negative_infinity());
    }
  }
  __device__ static bool ends_eight(int tile) { return (tile + 1) * kBlocks % 8 == 0; }
};

template <class Element, class S>
__device__ void multiply(uint32_t rows, uint32_t keys, float (&sums)[64]) {
  wgmma_fence();
#pragma unroll
  for (int k = 0; k < S::kDim / 16; ++k) {
    const uint64_t a = operand_descriptor(rows + uint32_t(k / 4 * S::kRowsHalfBytes));
    const uint64_t b = operand_descriptor(keys + uint32_t(k / 4 * S::kKeysHalfBytes));
    SharedWgmma<Element, 128>::run(sums, a + uint64_t(k % 4 * 2), b + uint64_t(k % 4 * 2), k == 0);
  }
  wgmma_commit();
}

template <class Element, class S, int kBlock, bool kBias>
__device__ void consume(const ScorePlan& p, const Shared<S>& shared) {
  using U = Unit<S, kBlock, kBias>;
  const int consumer = int(threadIdx.x) / kGroupThreads;
  const int count = __shfl_sync(~0u, *p.work_count, 0);
  int n = 0, pieces = 0;
  for (int w = int(blockIdx.x); w < count; w += int(gridDim.x), ++pieces) {
    const Work work = p.work[w];
    const int tiles = __shfl_sync(~0u, work.columns, 0);
    UnitRows units[kUnits];
#pragma unroll
    for (int u = 0; u < kUnits; ++u)
      units[u].start(p, work, work.unit * kTileRows + consumer * 128 + u * 64);
    const uint32_t rows = shared.rows + uint32_t(pieces % 2 * S::kRowsBytes + consumer * 128 * 128);
    const auto keys = [&](int turn) {
      return shared.keys + uint32_t(turn % S::kStages * S::kKeysBytes);
    };
    const auto norms = [&](int turn) {
      return shared.norms + uint32_t(turn % S::kStages * S::kNormBytes);
    };
    float x[kUnits][64];
    shared.row_ring.wait_full(pieces);
    for (int i = 0; i < tiles; ++i, ++n) {
      const int tile = work.column * kPieceTiles + i;
      shared.key_ring.wait_full(n);
      multiply<Element, S>(rows, keys(n), x[0]);
      multiply<Element, S>(rows + 64 * 128, keys(n), x[1]);
      wgmma_wait<1>();
      hold_sums(x[0]);
      U::run(p, units[0], x[0], norms(n), tile, i == 0);
      wgmma_wait<0>();
      hold_sums(x[1]);
      U::run(p, units[1], x[1], norms(n), tile, i == 0);
      shared.key_ring.release(n);
      if (i + 1 < tiles && !U::ends_eight(tile)) continue;
      U::flush(p, units[0], tile);
      U::flush(p, units[1], tile);
    }
    shared.row_ring.release(pieces);
  }
}

template <class Element, class S, int kBlock, bool kBias>
__global__ void __launch_bounds__(kProductThreads, 1)
    exact_wgmma_sm90(const __grid_constant__ CUtensorMap rows,
                     const __grid_constant__ CUtensorMap keys,
                     const ScorePlan p) {
  extern __shared__ uint8_t memory[];
  const Shared<S> shared(shared_address(memory));
  if (threadIdx.x == 0) {
    shared.key_ring.init();
    shared.row_ring.init();
    publish_barriers();
  }
  __syncthreads();
  wait_for_previous();
  if (threadIdx.x >= kConsumerThreads) {
    give_registers<40>();
    if (threadIdx.x == kConsumerThreads) produce<S, kBias>(p, rows, keys, shared);
  } else {
    take_registers<232>();
    consume<Element, S, kBlock, kBias>(p, shared);
  }
}

template <class Element, class S, int kBlock>
cudaError_t launch(const ScorePlan& p, cudaStream_t stream) {
  CUtensorMap rows, keys;
  const bool mapped =
      make_map<2>(rows, p.x, {p.dim, p.block_rows() * p.exact_rows}, {p.dim}, {kHalf, kTileRows}) &&
      make_map<3>(keys, p.k, {p.dim, p.total_k, p.kv_heads}, {p.k_token, p.k_head},
                  {kHalf, kTileKeys, 1});
  if (!mapped) return cudaErrorNotSupported;
  const dim3 grid(unsigned(std::min<int64_t>(multiprocessors(), p.work_capacity)));
  const auto start = [&](auto kernel) {
    return launch_shared(kernel, grid, kProductThreads, 1, S::kBytes, stream, rows, keys, p);
  };
  return p.has_bias ? start(exact_wgmma_sm90<Element, S, kBlock, true>)
                    : start(exact_wgmma_sm90<Element, S, kBlock, false>);
}

template <class Element>
cudaError_t launch(const ScorePlan& p, cudaStream_t stream) {
  if (p.dim == 128) {
    return p.block == 128 ? launch<Element, Shape<128>, 128>(p, stream)
                          : launch<Element, Shape<128>, 64>(p, stream);
  }
  return p.block == 128 ? launch<Element, Shape<64>, 128>(p, stream)
                        : launch<Element, Shape<64>, 64>(p, stream);
}

}  // namespace

int64_t exact_work_capacity(const ScorePlan& p) {
  const WorkShape shape = work_shape(p);
  return int64_t(p.batch) * p.kv_heads * shape.units * shape.columns;
}

cudaError_t run_exact(const ScorePlan& p, Type type, cudaStream_t stream) {
  if (p.total_k == 0) return cudaSuccess;
  if (const cudaError_t error = list_work(p, work_shape(p), stream)) return error;
  return type == Type::kBF16 ? launch<__nv_bfloat16>(p, stream) : launch<__half>(p, stream);
}

}  // namespace longspur::kernels::xattn::cuda
