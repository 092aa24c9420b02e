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
#include <cuda_runtime.h>

#include <algorithm>
#include <array>

#include "kernels/common/cuda/launch.cuh"
#include "kernels/common/cuda/status.cuh"
#include "kernels/nvfp4/cuda/matmul_impl.h"
#include "kernels/nvfp4/cuda/store.cuh"
#include "kernels/nvfp4/cuda/wgmma_loop.cuh"

namespace longspur::kernels::nvfp4::cuda {

namespace {

namespace cg = cooperative_groups;

struct Params {
  const uint8_t* packed;
  int m, chunks, groups;
  Finish finish;
};

__device__ inline void consumers_sync() {
  asm volatile("bar.sync 1, %0;" ::"n"(kConsumerThreads) : "memory");
}

// One thread: fills stage after stage. The weights of the first ones do not wait for x.
template <class S>
__device__ void produce(
    const Params& p, const CUtensorMap& x, const Ring& ring, int begin, int end) {
  const int group = int(blockIdx.x) * S::kGroups, token = int(blockIdx.y) * S::kTokens;
  const auto weights = [&](int i) {
    copy_weights<S>(ring, (i - begin) % S::kStages, p.packed, group, p.groups, p.chunks, i);
  };
  const auto tokens = [&](int i) { copy_tokens<S>(ring, (i - begin) % S::kStages, x, token, i); };
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
  if (threadIdx.x == 0) init_ring<S>(ring);
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
      consume<Element, S>(ring, consumer, 0, end - begin, sums);
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
  if (args.m <= 16) return Kernel<Element, Shape<16, 1>, false>::run(args, stream);
  if (args.m <= 64) return Narrow::run(args, stream);
  const Plan middle = Middle::plan(args), wide = Wide::plan(args);
  if (middle.time < wide.time) return Middle::launch(args, middle, stream);
  return wide.splits > 1 ? Wide::launch(args, wide, stream) : run_wide(args, stream);
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
