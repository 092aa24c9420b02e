// Products of more tokens, on wgmma. Packed weights.
//
// W is the A operand: a warpgroup decodes 64 rows x 64 columns into registers while the tensor
// cores work on the 64 before, so a decoded weight never sees shared memory. x is the B operand,
// copied as it is by the tensor memory accelerator. A block has one warp that copies and two
// warpgroups that decode and multiply, 64 or 128 rows each, over a ring of stages of 128 columns.
// Where there are too few blocks for the chip the columns are split over a cluster, whose blocks
// add up their sums through distributed shared memory in fixed order.
//
// kPrecise: sums of 32 columns are added to the total in rounded fp32; the tensor cores' own
// accumulation truncates, which shows in long sums of one sign.
#include <cooperative_groups.h>
#include <cuda.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <array>

#include "kernels/common/cuda/launch.cuh"
#include "kernels/common/cuda/status.cuh"
#include "kernels/nvfp4/cuda/matmul_impl.h"
#include "kernels/nvfp4/cuda/packed.cuh"
#include "kernels/nvfp4/cuda/sm90.cuh"
#include "kernels/nvfp4/cuda/store.cuh"

namespace longspur::kernels::nvfp4::cuda {

namespace {

namespace cg = cooperative_groups;

constexpr int kGroupThreads = 128;
constexpr int kConsumers = 2;  // warpgroups; the threads after them copy
constexpr int kConsumerThreads = kConsumers * kGroupThreads;
constexpr int kHalf = 64;             // columns of a swizzled row of x
constexpr int kSharedBytes = 232448;  // of a multiprocessor, for blocks
constexpr int kMostStages = 12;

struct Params {
  const uint8_t* packed;
  int m, chunks, groups;
  Finish finish;
};

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

__device__ inline void consumers_sync() {
  asm volatile("bar.sync 1, %0;" ::"n"(kConsumerThreads) : "memory");
}

struct Ring {
  uint32_t stages, full, empty;  // addresses
};

// One thread: fills stage after stage. The weights of the first ones do not wait for x.
template <class S>
__device__ void produce(
    const Params& p, const CUtensorMap& x, const Ring& ring, int begin, int end) {
  const int group = int(blockIdx.x) * S::kGroups;
  const int groups = min(S::kGroups, p.groups - group);
  const auto weights = [&](int i) {
    const int stage = (i - begin) % S::kStages;
    const uint32_t full = ring.full + uint32_t(stage * 8);
    const uint32_t to = ring.stages + uint32_t(stage * S::kStageBytes + S::kXBytes);
    expect_bytes(full, uint32_t(S::kXBytes + groups * kGroupBytes));
    for (int g = 0; g < groups; ++g) {
      copy_bulk(to + uint32_t(g * kGroupBytes),
                p.packed + (int64_t(group + g) * p.chunks + i) * kGroupBytes, kGroupBytes, full);
    }
  };
  const auto tokens = [&](int i) {
    const int stage = (i - begin) % S::kStages;
    const uint32_t to = ring.stages + uint32_t(stage * S::kStageBytes);
    const int row = int(blockIdx.y) * (S::kHalfBytes / (kHalf * 2));
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      copy_box(to + uint32_t(half * S::kHalfBytes), &x, i * kChunk + half * kHalf, row,
               ring.full + uint32_t(stage * 8));
    }
  };
  const int first = min(end, begin + S::kStages);
  for (int i = begin; i < first; ++i) weights(i);
  wait_for_previous();
  for (int i = begin; i < first; ++i) tokens(i);
  for (int i = first; i < end; ++i) {
    const int stage = (i - begin) % S::kStages, round = (i - begin) / S::kStages;
    wait_barrier(ring.empty + uint32_t(stage * 8), uint32_t(round - 1) & 1u);
    weights(i);
    tokens(i);
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

// A warpgroup's sums over `chunks` chunks. The products of 64 columns are under way while the next
// 64 are decoded.
template <class Element, class S>
__device__ void consume(const Ring& ring,
                        int consumer,
                        int chunks,
                        float (&sums)[S::kRowTiles][S::kTokens / 2]) {
  const int lane = int(threadIdx.x) % kWarp;
  uint32_t a[2][4][4];  // of the products under way and of the next
  for (int i = 0; i < chunks; ++i) {
    const Stage<S> stage(ring, i);
    stage.wait();
#pragma unroll
    for (int unit = 0; unit < 2 * S::kRowTiles; ++unit) {
      const int half = unit / S::kRowTiles, r = unit % S::kRowTiles;
      wgmma_wait<1>();  // the operand of two units ago is free
      if (unit == 1 && i > 0) Stage<S>(ring, i - 1).release();
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
#pragma unroll
  for (int r = 0; r < S::kRowTiles; ++r) hold_sums(sums[r]);
}

// The same with a rounded sum every 32 columns.
template <class Element, class S>
__device__ void consume_precisely(const Ring& ring,
                                  int consumer,
                                  int chunks,
                                  float (&sums)[1][S::kTokens / 2]) {
  const int lane = int(threadIdx.x) % kWarp;
  float part[S::kTokens / 2];
#pragma unroll
  for (int e = 0; e < S::kTokens / 2; ++e) sums[0][e] = 0;
  for (int i = 0; i < chunks; ++i) {
    const Stage<S> stage(ring, i);
    stage.wait();
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      uint32_t a[4][4];
      decode_half<Element>(stage.tile(consumer, 0), half, lane, a);
      const uint64_t b = stage.operand(half);
#pragma unroll
      for (int j = 0; j < 4; j += 2) {
        wgmma_fence();
        Wgmma<Element, S::kTokens>::run(part, a[j], b + uint64_t(j * 2), true);
        Wgmma<Element, S::kTokens>::run(part, a[j + 1], b + uint64_t(j * 2 + 2), false);
        wgmma_commit();
        wgmma_wait<0>();
        hold_sums(part);
#pragma unroll
        for (int e = 0; e < S::kTokens / 2; ++e) sums[0][e] += part[e];
      }
    }
    stage.release();
  }
}

// Sums to shared memory, [tokens][rows], to be read by whole rows.
template <class S>
__device__ void spread(float* to, int consumer, const float (&sums)[S::kRowTiles][S::kTokens / 2]) {
  const int warp = int(threadIdx.x) % kGroupThreads / kWarp, lane = int(threadIdx.x) % kWarp;
#pragma unroll
  for (int r = 0; r < S::kRowTiles; ++r) {
    const int row = ((consumer * S::kRowTiles + r) * 4 + warp) * kTileRows + lane / 4;
#pragma unroll
    for (int e = 0; e < S::kTokens / 2; ++e) {
      const int token = e / 4 * 8 + lane % 4 * 2 + e % 2;
      to[token * S::kPitch + row + e % 4 / 2 * 8] = sums[r][e];
    }
  }
}

// Adds up the cluster's sums and stores every cluster-th token.
template <class S>
__device__ void finish(const Params& p, float* sums) {
  auto cluster = cg::this_cluster();
  const int splits = int(gridDim.z), rank = int(blockIdx.z);
  const int worker = int(threadIdx.x) / kWarp, lane = int(threadIdx.x) % kWarp;
  constexpr int kWorkers = kConsumerThreads / kWarp;
  const int first_row = int(blockIdx.x) * S::kRows;
  for (int local = worker * splits + rank; local < S::kTokens; local += kWorkers * splits) {
    const int token = int(blockIdx.y) * S::kTokens + local;
    if (token >= p.m) break;
    for (int r = lane * 4; r < S::kRows; r += kWarp * 4) {
      float4 sum = *reinterpret_cast<const float4*>(sums + local * S::kPitch + r);
      if (splits > 1) {
        sum = make_float4(0, 0, 0, 0);
        for (int s = 0; s < splits; ++s) {
          const float4 v = *reinterpret_cast<const float4*>(
              cluster.map_shared_rank(sums, unsigned(s)) + local * S::kPitch + r);
          sum = make_float4(sum.x + v.x, sum.y + v.y, sum.z + v.z, sum.w + v.w);
        }
      }
      p.finish.store4(token, first_row + r, sum);
    }
  }
}

template <class Element, class S, bool kPrecise>
__global__ void __launch_bounds__(S::kThreads, S::kBlocks)
    many_tokens_wgmma_sm90(const __grid_constant__ CUtensorMap x, const Params p) {
  extern __shared__ uint8_t shared[];
  let_next_start();
  // The swizzle wants alignment, and the blocks of a cluster the same place.
  uint8_t* base = shared + (1024 - (shared_address(shared) & 1023u)) % 1024;
  const uint32_t barriers = shared_address(base) + uint32_t(S::kStages * S::kStageBytes);
  const Ring ring{shared_address(base), barriers, barriers + uint32_t(S::kStages * 8)};
  if (threadIdx.x == 0) {
    for (int i = 0; i < S::kStages; ++i) {
      init_barrier(ring.full + uint32_t(i * 8), 1);
      init_barrier(ring.empty + uint32_t(i * 8), kConsumerThreads / kWarp);
    }
    publish_barriers();
  }
  __syncthreads();
  const int splits = int(gridDim.z);
  const int begin = int(blockIdx.z) * p.chunks / splits;
  const int end = int(blockIdx.z + 1) * p.chunks / splits;
  auto* staged = reinterpret_cast<float*>(base);
  if (threadIdx.x >= kConsumerThreads) {
    if constexpr (S::kBlocks == 1) give_registers<40>();
    if (threadIdx.x == kConsumerThreads) produce<S>(p, x, ring, begin, end);
    __syncwarp();
    if (splits > 1) {
      cg::this_cluster().sync();
      cg::this_cluster().sync();
    }
  } else {
    if constexpr (S::kBlocks == 1) take_registers<232>();
    const int consumer = int(threadIdx.x) / kGroupThreads;
    float sums[S::kRowTiles][S::kTokens / 2];
    if constexpr (kPrecise)
      consume_precisely<Element, S>(ring, consumer, end - begin, sums);
    else
      consume<Element, S>(ring, consumer, end - begin, sums);
    wait_for_previous();  // writing y must wait as well
    consumers_sync();     // the ring has been read
    spread<S>(staged, consumer, sums);
    if (splits > 1)
      cg::this_cluster().sync();
    else
      consumers_sync();
    finish<S>(p, staged);
    if (splits > 1) cg::this_cluster().sync();  // the others may still read this block's sums
  }
}

// --- host ---

using EncodeTiled = CUresult (*)(CUtensorMap*,
                                 CUtensorMapDataType,
                                 cuuint32_t,
                                 void*,
                                 const cuuint64_t*,
                                 const cuuint64_t*,
                                 const cuuint32_t*,
                                 const cuuint32_t*,
                                 CUtensorMapInterleave,
                                 CUtensorMapSwizzle,
                                 CUtensorMapL2promotion,
                                 CUtensorMapFloatOOBfill);

// From the driver, without linking to it: machines without one build and load this library.
EncodeTiled encode_tiled() {
  void* entry = nullptr;
  cudaDriverEntryPointQueryResult found{};
  if (cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000, cudaEnableDefault,
                                       &found) != cudaSuccess ||
      found != cudaDriverEntryPointSuccess)
    return nullptr;
  return reinterpret_cast<EncodeTiled>(entry);
}

bool make_map(const MatmulArgs& args, int tokens, CUtensorMap& map) {
  static const EncodeTiled encode = encode_tiled();
  const cuuint64_t sizes[] = {cuuint64_t(args.w.k), cuuint64_t(args.m)};
  const cuuint64_t strides[] = {cuuint64_t(args.w.k) * 2};
  const cuuint32_t box[] = {kHalf, cuuint32_t(tokens)};
  const cuuint32_t steps[] = {1, 1};
  const auto type = args.x_type == Type::kBF16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16
                                               : CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
  return encode != nullptr && encode(&map, type, 2, const_cast<void*>(args.x), sizes, strides, box,
                                     steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
                                     CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                                     CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

int chunks_of(const MatmulArgs& args) { return int((args.w.k + kChunk - 1) / kChunk); }

// A way to divide the product: blocks of S::kRows x S::kTokens, columns over `splits` blocks.
struct Plan {
  int splits = 1;
  int64_t time = INT64_MAX;  // estimated, in cycles
};

// How many blocks of a kernel the chip holds at once in clusters of `splits`: fewer than its
// multiprocessors, as a cluster may not cross a group of them.
template <class Kernel>
int64_t capacity_of(Kernel kernel, int splits, unsigned threads, size_t shared) {
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = attribute.val.clusterDim.y = 1;
  attribute.val.clusterDim.z = unsigned(splits);
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(1, 1, unsigned(splits));
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared;
  config.attrs = &attribute;
  config.numAttrs = 1;
  int clusters = 0;
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared));
  if (cudaOccupancyMaxActiveClusters(&clusters, kernel, &config) != cudaSuccess) clusters = 0;
  cudaGetLastError();
  return int64_t(clusters) * splits;
}

constexpr int kMostSplits = 8;  // the largest cluster that every chip has

template <class Element, class S, bool kPrecise>
struct Kernel {
  static constexpr auto kFunction = many_tokens_wgmma_sm90<Element, S, kPrecise>;

  static dim3 grid(const MatmulArgs& args, int splits) {
    return dim3(unsigned((args.w.n + S::kRows - 1) / S::kRows),
                unsigned((args.m + S::kTokens - 1) / S::kTokens), unsigned(splits));
  }
  // Cycles of a chunk (measured), and those that a block needs beside its chunks, in chunks.
  static Plan plan(const MatmulArgs& args) {
    constexpr int64_t kChunkCycles =
        (S::kTokens <= 64 ? 1000 : 700 + 700 * S::kRowTiles) * (kPrecise ? 2 : 1);
    static const std::array<int64_t, kMostSplits> capacities = [] {
      std::array<int64_t, kMostSplits> result{};
      for (int splits = 1; splits <= kMostSplits; ++splits)
        result[size_t(splits - 1)] = capacity_of(kFunction, splits, S::kThreads, S::kBytes);
      return result;
    }();
    const dim3 one = grid(args, 1);
    const int64_t blocks = int64_t(one.x) * one.y, chunks = chunks_of(args);
    Plan best;
    for (int splits = 1; splits <= kMostSplits; ++splits) {
      const int64_t capacity = capacities[size_t(splits - 1)];
      if (capacity == 0 || (splits > 1 && chunks / splits < 4)) continue;
      const int64_t waves = (blocks * splits + capacity - 1) / capacity;
      const int64_t block = (chunks + splits - 1) / splits + (splits > 1 ? 5 : 3);
      const int64_t time = waves * block * kChunkCycles;
      if (time < best.time) best = {splits, time};
    }
    return best;
  }
  static cudaError_t launch(const MatmulArgs& args, const Plan& plan, cudaStream_t stream) {
    CUtensorMap map;
    if (!make_map(args, S::kTokens, map)) return cudaErrorNotSupported;
    const Params p{static_cast<const uint8_t*>(args.w.packed), int(args.m), chunks_of(args),
                   int((args.w.n + kGroupRows - 1) / kGroupRows), make_finish(args, kOperandUnit)};
    return launch_shared(kFunction, grid(args, plan.splits), S::kThreads, unsigned(plan.splits),
                         S::kBytes, stream, map, p);
  }
  static cudaError_t run(const MatmulArgs& args, cudaStream_t stream) {
    return launch(args, plan(args), stream);
  }
};

// W4A4: exact operands deserve sums to match.
cudaError_t run_precisely(const MatmulArgs& args, cudaStream_t stream) {
  if (args.m <= 16) return Kernel<__nv_bfloat16, Shape<16, 1>, true>::run(args, stream);
  if (args.m <= 64) return Kernel<__nv_bfloat16, Shape<64, 1>, true>::run(args, stream);
  return Kernel<__nv_bfloat16, Shape<128, 1>, true>::run(args, stream);
}

template <class Element>
cudaError_t run_tokens(const MatmulArgs& args, cudaStream_t stream) {
  using Narrow = Kernel<Element, Shape<64, 1>, false>;
  using Middle = Kernel<Element, Shape<128, 1>, false>;
  using Wide = Kernel<Element, Shape<128, 2>, false>;  // halves the traffic of x
  if (args.m <= 64) return Narrow::run(args, stream);
  const Plan middle = Middle::plan(args), wide = Wide::plan(args);
  return middle.time < wide.time ? Middle::launch(args, middle, stream)
                                 : Wide::launch(args, wide, stream);
}

bool accepts(const MatmulArgs& args) {
  return args.w.packed != nullptr && args.x_type != Type::kF32 && args.m < (1 << 22) &&
         args.w.n < (int64_t(1) << 31) - kGroupRows && args.w.k < int64_t(1) << 31;
}

CudaStatus run(const MatmulArgs& args, void* stream) {
  const auto s = static_cast<cudaStream_t>(stream);
  cudaError_t error;
  if (args.x_codes != nullptr)
    error = run_precisely(args, s);
  else if (args.x_type == Type::kBF16)
    error = run_tokens<__nv_bfloat16>(args, s);
  else
    error = run_tokens<__half>(args, s);
  return error != cudaSuccess ? cudaGetErrorString(error) : launch_status();
}

}  // namespace

const Implementation kManyTokens{"many_tokens", accepts, run};

}  // namespace longspur::kernels::nvfp4::cuda
