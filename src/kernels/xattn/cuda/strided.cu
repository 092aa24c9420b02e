// Masses of the antidiagonal and diagonal terms: groups of S tokens are rows of S D elements, which
// for keys is how they lie in memory and for queries a matter of the coordinates of copies. Tiles
// of 128 groups of queries x 256 groups of keys; each row's sum over a key block leaves as one
// log2.
#include <cuda_runtime.h>

#include <algorithm>

#include "kernels/xattn/cuda/product.cuh"

namespace longspur::kernels::xattn::cuda {

namespace {

constexpr int kTileRows = 128, kTileColumns = 256, kStages = 4;
constexpr int kRowBytes = kTileRows * kHalf * 2, kColumnBytes = kTileColumns * kHalf * 2;
constexpr int kStageBytes = kRowBytes + kColumnBytes;
constexpr int kBytes = kStages * kStageBytes + 2 * kStages * 8 + 1024;
static_assert(kBytes <= kSharedBytes);

using StridedRing = Ring<kStages>;

WorkShape work_shape(const ScorePlan& p, int size) {
  const int tiles = div_up(p.blocks, size), keys = kTileColumns * size;
  return {tiles * p.group,
          std::max(div_up(p.max_k, keys), 1),
          std::max(12 / p.group, 1) * p.group,
          size,
          0,
          keys};
}

// Tokens of a group as coordinates: a group of a sequence starts anywhere in a group of the tensor.
struct Groups {
  int row, token;
  __device__ Groups(int first_token, int size)
      : row(first_token / size), token(first_token % size) {}
};

__device__ void produce(const ScorePlan& p,
                        const TermPlan& term,
                        const CUtensorMap& queries,
                        const CUtensorMap& keys,
                        uint32_t stages,
                        const StridedRing& ring) {
  const int halves = p.dim / kHalf, count = *p.work_count;
  const bool reversed = term.term == Term::kAntidiagonal;
  int n = 0;
  for (int w = int(blockIdx.x); w < count; w += int(gridDim.x)) {
    const Work work = p.work[w];
    const Sequence s = Sequence::of(p, work.group / p.kv_heads);
    const Groups from_q(s.q0, term.size), from_k(s.k0, term.size);
    const int g = work.group % p.kv_heads, h = g * p.group + work.unit % p.group;
    const int row =
        from_q.row + p.first_block * kRowsOfBlock / term.size + work.unit / p.group * kTileRows;
    const int column = from_k.row + work.column * kTileColumns;
    for (int i = 0; i < term.size; ++i) {
      const int tq = from_q.token + (reversed ? term.size - 1 - i : i), tk = from_k.token + i;
      const int next_q = tq >= term.size ? 1 : 0, next_k = tk >= term.size ? 1 : 0;
      for (int half = 0; half < halves; ++half, ++n) {
        const uint32_t to = stages + uint32_t(n % kStages * kStageBytes), full = ring.barrier(n);
        ring.wait_empty(n);
        expect_bytes(full, kStageBytes);
        copy_box4(to + kRowBytes, &keys, half * kHalf, tk - next_k * term.size, column + next_k, g,
                  full);
        copy_box4(to, &queries, half * kHalf, tq - next_q * term.size, row + next_q, h, full);
      }
    }
  }
}

template <class Element>
__device__ void multiply(uint32_t stages,
                         const StridedRing& ring,
                         int consumer,
                         int first,
                         int steps,
                         float (&sums)[128]) {
  for (int step = 0; step < steps; ++step) {
    const int n = first + step;
    const uint32_t stage = stages + uint32_t(n % kStages * kStageBytes);
    const uint64_t a = operand_descriptor(stage + uint32_t(consumer * kRowBytes / 2));
    const uint64_t b = operand_descriptor(stage + kRowBytes);
    ring.wait_full(n);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < 4; ++k)
      SharedWgmma<Element, 256>::run(sums, a + uint64_t(k * 2), b + uint64_t(k * 2),
                                     step == 0 && k == 0);
    wgmma_commit();
    wgmma_wait<1>();
    if (step > 0) ring.release(n - 1);
  }
  wgmma_wait<0>();
  ring.release(first + steps - 1);
  hold_sums(sums);
}

// Sums of a row's 256 powers over the key blocks of kColumns columns. Each lane of a quad gets
// kCount of them, those of key blocks block(i).
template <int kColumns>
struct BlockSums {
  static constexpr int kCount = kColumns >= 4 ? 64 / kColumns : kColumns == 2 ? 32 : 64;

  __device__ static int block(int i) {
    const int lane = int(threadIdx.x) % 4;
    if constexpr (kColumns >= 8) return lane * kCount + i;
    if constexpr (kColumns == 4) return 2 * (lane % 2 * 16 + i) + lane / 2;
    if constexpr (kColumns == 2) return 4 * i + lane;
    return i / 2 * 8 + lane * 2 + i % 2;
  }

  // powers: element 2 i + e is of column 8 i + 2 (lane % 4) + e.
  __device__ static void reduce(const float (&powers)[64], float (&sums)[kCount]) {
    if constexpr (kColumns == 1) {
#pragma unroll
      for (int i = 0; i < 64; ++i) sums[i] = powers[i];
    } else {
      constexpr int kChunks = kColumns > 8 ? kColumns / 8 : 1, kBlocks = 32 / kChunks;
      float v[kBlocks];
#pragma unroll
      for (int i = 0; i < kBlocks; ++i) {
        v[i] = 0;
#pragma unroll
        for (int j = 0; j < 2 * kChunks; ++j) v[i] += powers[i * 2 * kChunks + j];
      }
      if constexpr (kColumns >= 8) halve<kBlocks / 2>(v, 2);
      if constexpr (kColumns >= 8) halve<kBlocks / 4>(v, 1);
      if constexpr (kColumns == 4) halve<kBlocks / 2>(v, 1);
#pragma unroll
      for (int i = 0; i < kCount; ++i) sums[i] = v[i];
    }
  }

 private:
  // The lane whose bit is set keeps the upper half of both lanes' sums, the other the lower.
  template <int kKept, int kBlocks>
  __device__ static void halve(float (&v)[kBlocks], int bit) {
    const bool upper = (threadIdx.x & unsigned(bit)) != 0;
#pragma unroll
    for (int i = 0; i < kKept; ++i) {
      const float give = upper ? v[i] : v[i + kKept], keep = upper ? v[i + kKept] : v[i];
      v[i] = keep + __shfl_xor_sync(~0u, give, bit);
    }
  }
};

template <int kCount, int kColumns>
__device__ void store_blocks(float* masses, int pitch, int first, const float (&values)[kCount]) {
  if constexpr (kColumns >= 8) {
    const int j = first + BlockSums<kColumns>::block(0);
    if (j >= pitch) return;
    if constexpr (kCount == 2) {
      *reinterpret_cast<float2*>(masses + j) = make_float2(values[0], values[1]);
    } else {
#pragma unroll
      for (int i = 0; i < kCount; i += 4)
        *reinterpret_cast<float4*>(masses + j + i) =
            make_float4(values[i], values[i + 1], values[i + 2], values[i + 3]);
    }
  } else {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const int j = first + BlockSums<kColumns>::block(i);
      if (j < pitch) masses[j] = values[i];
    }
  }
}

// One row of a tile: 64 of its 256 products in this lane, the others in the quad's.
template <int kColumns>
__device__ void finish_row(
    float (&x)[64], float factor, int visible, float* masses, int pitch, int first) {
  float top = negative_infinity();
#pragma unroll
  for (int i = 0; i < 64; ++i) {
    const int column = i / 2 * 8 + int(threadIdx.x) % 4 * 2 + i % 2;
    x[i] = column < visible ? x[i] * factor : negative_infinity();
    top = fmaxf(top, x[i]);
  }
  top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
  top = fmaxf(top, __shfl_xor_sync(~0u, top, 2));
  if (top == negative_infinity()) top = 0;
  float sums[BlockSums<kColumns>::kCount];
#pragma unroll
  for (int i = 0; i < 64; ++i) x[i] = power_of_two(x[i] - top);
  BlockSums<kColumns>::reduce(x, sums);
#pragma unroll
  for (int i = 0; i < BlockSums<kColumns>::kCount; ++i) sums[i] = top + __log2f(sums[i]);
  if (masses != nullptr)
    store_blocks<BlockSums<kColumns>::kCount, kColumns>(masses, pitch, first, sums);
}

template <int kColumns>
__device__ void finish(
    const ScorePlan& p, const TermPlan& term, const Work& work, int consumer, float (&sums)[128]) {
  const int warp = int(threadIdx.x) % kGroupThreads / kWarp, lane = int(threadIdx.x) % kWarp;
  const Sequence s = Sequence::of(p, work.group / p.kv_heads);
  const int hh = work.unit % p.group;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row =
        work.unit / p.group * kTileRows + consumer * 64 + warp * 16 + lane / 4 + half * 8;
    const int i = row * term.size / kRowsOfBlock, r = row % term.rows;
    // Groups that are not whole are left to run_strided_edges().
    const int whole = whole_groups(s.k0, s.m, p.total_k, term.size);
    const int limit = i < p.blocks ? min(row_limit(p, term, s, p.first_block + i, r), whole) : 0;
    const int64_t block_row = (int64_t(work.group) * p.blocks + i) * p.group + hh;
    float* masses =
        limit > 0 ? p.masses + (block_row * p.rows + term.first + r) * p.pitch : nullptr;
    float x[64];
#pragma unroll
    for (int j = 0; j < 64; ++j) x[j] = sums[j / 2 * 4 + half * 2 + j % 2];
    finish_row<kColumns>(x, p.scale2 / float(term.size), limit - work.column * kTileColumns, masses,
                         p.pitch, work.column * (kTileColumns / kColumns));
  }
}

template <class Element, int kColumns>
__global__ void __launch_bounds__(kProductThreads, 1)
    strided_wgmma_sm90(const __grid_constant__ CUtensorMap queries,
                       const __grid_constant__ CUtensorMap keys,
                       const ScorePlan p,
                       int index) {
  extern __shared__ uint8_t shared[];
  const uint32_t base = (shared_address(shared) + 1023u) / 1024u * 1024u;  // the swizzle's wish
  const uint32_t barriers = base + uint32_t(kStages * kStageBytes);
  const StridedRing ring{barriers, barriers + uint32_t(kStages * 8)};
  if (threadIdx.x == 0) {
    ring.init();
    publish_barriers();
  }
  __syncthreads();
  wait_for_previous();
  const TermPlan& term = p.terms[index];
  if (threadIdx.x >= kConsumerThreads) {
    give_registers<40>();
    if (threadIdx.x == kConsumerThreads) produce(p, term, queries, keys, base, ring);
  } else {
    take_registers<232>();
    const int consumer = int(threadIdx.x) / kGroupThreads;
    const int steps = term.size * (p.dim / kHalf), count = __shfl_sync(~0u, *p.work_count, 0);
    int n = 0;
    for (int w = int(blockIdx.x); w < count; w += int(gridDim.x), n += steps) {
      const Work work = p.work[w];
      float sums[128];
      multiply<Element>(base, ring, consumer, n, steps, sums);
      finish<kColumns>(p, term, work, consumer, sums);
    }
  }
}

template <class Element>
cudaError_t launch(const ScorePlan& p,
                   int index,
                   const CUtensorMap& queries,
                   const CUtensorMap& keys,
                   cudaStream_t stream) {
  const auto start = [&](auto kernel) {
    const dim3 grid(unsigned(std::min<int64_t>(multiprocessors(), p.work_capacity)));
    return launch_shared(kernel, grid, kProductThreads, 1, kBytes, stream, queries, keys, p, index);
  };
  switch (p.block / p.terms[index].size) {
    case 1:
      return start(strided_wgmma_sm90<Element, 1>);
    case 2:
      return start(strided_wgmma_sm90<Element, 2>);
    case 4:
      return start(strided_wgmma_sm90<Element, 4>);
    case 8:
      return start(strided_wgmma_sm90<Element, 8>);
    case 16:
      return start(strided_wgmma_sm90<Element, 16>);
    default:
      return start(strided_wgmma_sm90<Element, 32>);
  }
}

}  // namespace

int64_t strided_work_capacity(const ScorePlan& p, int size) {
  const WorkShape shape = work_shape(p, size);
  return int64_t(p.batch) * p.kv_heads * shape.units * shape.columns;
}

cudaError_t run_strided(const ScorePlan& p, int index, Type type, cudaStream_t stream) {
  const int64_t size = p.terms[index].size;
  // Without a whole group all of them are edges.
  if (p.total_q < size || p.total_k < size) return cudaSuccess;
  CUtensorMap queries, keys;
  const bool mapped =
      make_map<4>(queries, p.q, {p.dim, size, p.total_q / size, p.heads},
                  {p.q_token, size * p.q_token, p.q_head}, {kHalf, 1, kTileRows, 1}) &&
      make_map<4>(keys, p.k, {p.dim, size, p.total_k / size, p.kv_heads},
                  {p.k_token, size * p.k_token, p.k_head}, {kHalf, 1, kTileColumns, 1});
  if (!mapped) return cudaErrorNotSupported;
  if (const cudaError_t error = list_work(p, work_shape(p, int(size)), stream)) return error;
  return type == Type::kBF16 ? launch<__nv_bfloat16>(p, index, queries, keys, stream)
                             : launch<__half>(p, index, queries, keys, stream);
}

}  // namespace longspur::kernels::xattn::cuda
