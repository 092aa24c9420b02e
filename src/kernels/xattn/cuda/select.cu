// Selection: one row of scores to a warp, or to a block where rows are long. The cutoff is found by
// bisection over the bits of scores, the sums are of integers (select_math.h), so that the kept
// blocks are those of the CPU.
#include <cuda_runtime.h>

#include <algorithm>

#include "kernels/common/cuda/launch.cuh"
#include "kernels/common/cuda/status.cuh"
#include "kernels/xattn/cuda/xattn_cuda.h"
#include "kernels/xattn/select_math.h"

namespace longspur::kernels::xattn::cuda {

namespace {

// kThreads a row, which hold kPer scores each in registers; 0: scores are read again and again.
template <int kThreadCount, int kScoresEach>
struct Shape {
  static constexpr int kThreads = kThreadCount, kPer = kScoresEach;
  static constexpr int kWarps = kThreads / kWarp;
  static constexpr int kRows = kWarps == 1 ? 8 : 1, kBlockThreads = kRows * kThreads;
  // Registers are what rows of many scores want, warps are what hides their latency.
  static constexpr int kBlocks = kBlockThreads == 128 ? 4 : 2;
};

template <class S>
class Group {
 public:
  __device__ explicit Group(uint64_t* shared) : shared_(shared) {}
  __device__ int thread() const { return int(threadIdx.x) % S::kThreads; }
  __device__ int warp() const { return thread() / kWarp; }
  __device__ int lane() const { return thread() % kWarp; }

  // Sums of numbers below 2^50 a thread.
  __device__ uint64_t sum(uint64_t x) {
    const uint32_t low = __reduce_add_sync(~0u, uint32_t(x) & 0x7fffffu);
    const uint32_t high = __reduce_add_sync(~0u, uint32_t(x >> 23));
    x = (uint64_t(high) << 23) + low;
    if constexpr (S::kWarps == 1) return x;
    const uint64_t* all = gather(x);
    x = 0;
    for (int w = 0; w < S::kWarps; ++w) x += all[w];
    return x;
  }
  // A sum, the smallest `above` and the largest `below`, of a row.
  __device__ uint64_t sum(uint64_t x, uint32_t& above, uint32_t& below) {
    above = __reduce_min_sync(~0u, above);
    below = __reduce_max_sync(~0u, below);
    if constexpr (S::kWarps == 1) return sum(x);
    const uint64_t* bounds = gather(uint64_t(above) << 32 | below);
    for (int w = 0; w < S::kWarps; ++w) {
      above = ::min(above, uint32_t(bounds[w] >> 32));
      below = ::max(below, uint32_t(bounds[w]));
    }
    return sum(x);
  }
  __device__ uint32_t max(uint32_t x) {
    x = __reduce_max_sync(~0u, x);
    if constexpr (S::kWarps == 1) return x;
    const uint64_t* all = gather(x);
    x = 0;
    for (int w = 0; w < S::kWarps; ++w) x = ::max(x, uint32_t(all[w]));
    return x;
  }
  // How many of this warp's turn and those of the warps before it are true, before this thread.
  // Adds the turn of all to `base`.
  __device__ int rank(bool yes, int& base) {
    const uint32_t ballot = __ballot_sync(~0u, yes);
    int rank = base + __popc(ballot & ((1u << lane()) - 1));
    if constexpr (S::kWarps == 1) {
      base += __popc(ballot);
      return rank;
    }
    const uint64_t* all = gather(uint64_t(__popc(ballot)));
    for (int w = 0; w < S::kWarps; ++w) {
      if (w < warp()) rank += int(all[w]);
      base += int(all[w]);
    }
    return rank;
  }

 private:
  // A number of each warp. Two places take turns, so that one barrier is enough.
  __device__ const uint64_t* gather(uint64_t x) {
    uint64_t* all = shared_ + turn_ * S::kWarps;
    turn_ ^= 1;
    if (lane() == 0) all[warp()] = x;
    __syncthreads();
    return all;
  }

  uint64_t* shared_;
  int turn_ = 0;
};

// A row's scores as keys, and the units of those that are not forced.
template <class S>
struct Row {
  const float* scores;
  int end;  // visible blocks
  ForcedBlocks forced;
  uint32_t max_key;
  uint32_t keys[S::kPer > 0 ? S::kPer : 1];
  uint64_t units[S::kPer > 0 ? S::kPer : 1];

  __device__ uint32_t key_at(int j) const {
    return j < end ? score_key(__float_as_uint(scores[j])) : 0u;
  }
  __device__ bool is_forced_at(int j) const { return is_forced(forced, j); }
  __device__ uint64_t free_units(int j, uint32_t key) const {
    return is_forced_at(j) ? 0 : score_units(key, max_key);
  }

  // f(j, key, units) for this thread's scores, every thread as often; j may lie beyond the end.
  template <class F>
  __device__ void each(int thread, F f) const {
    if constexpr (S::kPer > 0) {
#pragma unroll
      for (int i = 0; i < S::kPer; ++i) {
        if (i * S::kThreads >= end) break;
        f(i * S::kThreads + thread, keys[i], units[i]);
      }
    } else {
      for (int base = 0; base < end; base += S::kThreads) {
        const uint32_t key = key_at(base + thread);
        f(base + thread, key, free_units(base + thread, key));
      }
    }
  }
};

template <class S>
__device__ Row<S> load_row(const float* scores,
                           int end,
                           const ForcedBlocks& forced,
                           Group<S>& group) {
  Row<S> row{scores, end, forced, 0, {}, {}};
  const int thread = group.thread();
  uint32_t max_key = 0;
  if constexpr (S::kPer > 0) {
#pragma unroll
    for (int i = 0; i < S::kPer; ++i) {
      row.keys[i] = row.key_at(i * S::kThreads + thread);
      max_key = max(max_key, row.keys[i]);
    }
  } else {
    for (int j = thread; j < end; j += S::kThreads) max_key = max(max_key, row.key_at(j));
  }
  row.max_key = group.max(max_key);
  if constexpr (S::kPer > 0) {
#pragma unroll
    for (int i = 0; i < S::kPer; ++i)
      row.units[i] =
          is_score(row.max_key) ? row.free_units(i * S::kThreads + thread, row.keys[i]) : 0;
  }
  return row;
}

// What a row keeps besides the forced blocks: those with a key above `above`, and of those with the
// key `tie` the first `ties`.
struct Cutoff {
  uint32_t above, tie;
  int ties;
};

template <class S>
__device__ Cutoff find_cutoff(const Row<S>& row, uint32_t threshold, Group<S>& group) {
  constexpr Cutoff kNothing{kInfinityBits, kInfinityBits, 0};
  if (threshold >= kOneBits) return {0, kInfinityBits, 0};
  uint64_t free = 0, forced = 0;
  row.each(group.thread(), [&](int j, uint32_t key, uint64_t units) {
    free += units;
    if (j < row.end && row.is_forced_at(j)) forced += score_units(key, row.max_key);
  });
  free = group.sum(free);
  forced = group.sum(forced);
  const uint64_t required = required_units(threshold, free + forced);
  if (forced >= required) return kNothing;
  const uint64_t need = required - forced;
  // The cutoff is the smallest key above which the blocks hold less than is needed; a block that
  // counts has it, so that the bounds may move from key to key. Keys 2^40 below the largest have no
  // units.
  const uint32_t exponent = row.max_key >> 23;
  uint32_t low = exponent > 41 ? (exponent - 41) << 23 : 0, high = row.max_key;
  uint64_t held = 0;  // above high
  while (low < high) {
    const uint32_t middle = low + (high - low) / 2;
    uint64_t sum = 0;
    uint32_t above = high, below = 0;
    row.each(group.thread(), [&](int, uint32_t key, uint64_t units) {
      if (units == 0) return;
      if (key > middle) {
        sum += units;
        above = min(above, key);
      } else {
        below = max(below, key);
      }
    });
    sum = group.sum(sum, above, below);
    if (sum < need) {
      high = below;
      held = sum;
    } else {
      low = above;
    }
  }
  const uint64_t each = score_units(low, row.max_key);
  const uint64_t ties = each == 0 ? INT32_MAX : (need - held + each - 1) / each;
  return {low, low, int(min(ties, uint64_t(INT32_MAX)))};
}

// Writes the words and returns the units and, in `count`, the number of the blocks that keep()
// wants.
template <class S, class Keep>
__device__ uint64_t
write_row(const Row<S>& row, uint32_t* words, Group<S>& group, int& count, Keep keep) {
  uint64_t kept_units = 0;
  int kept = 0;
  row.each(group.thread(), [&](int j, uint32_t key, uint64_t) {
    const bool wanted = keep(j, key) && j < row.end;
    const uint32_t word = __ballot_sync(~0u, wanted);
    if (group.lane() == 0 && j < row.end) words[j / 32] = word;
    kept += wanted ? 1 : 0;
    kept_units += wanted && is_score(row.max_key) ? score_units(key, row.max_key) : 0;
  });
  count = int(group.sum(uint64_t(kept)));
  return group.sum(kept_units);
}

template <class S>
__device__ RowStats
select_visible(const Row<S>& row, float threshold, Rule rule, uint32_t* words, Group<S>& group) {
  const uint32_t bits = __float_as_uint(threshold);
  int kept = 0;
  if (!is_score(row.max_key) || is_nan_bits(bits)) {
    write_row(row, words, group, kept, [](int, uint32_t) { return true; });
    return {row.end, row.end, 1.0f};
  }
  uint64_t all = 0;
  row.each(group.thread(), [&](int j, uint32_t key, uint64_t) {
    all += j < row.end ? score_units(key, row.max_key) : 0;
  });
  all = group.sum(all);
  uint64_t units = 0;
  if (rule == Rule::kOfMax) {
    const float largest = __uint_as_float(row.max_key);
    units = write_row(row, words, group, kept, [&](int j, uint32_t key) {
      return row.is_forced_at(j) || at_least(__uint_as_float(key), threshold, largest);
    });
  } else {
    const Cutoff cutoff = find_cutoff(row, threshold_key(bits), group);
    int base = 0;
    units = write_row(row, words, group, kept, [&](int j, uint32_t key) {
      const bool forced = row.is_forced_at(j);
      const int rank = group.rank(key == cutoff.tie && !forced && j < row.end, base);
      return forced || key > cutoff.above || (key == cutoff.tie && rank < cutoff.ties);
    });
  }
  return {kept, row.end, all == 0 ? 1.0f : float(double(units) / double(all))};
}

template <class S>
__global__ void __launch_bounds__(S::kBlockThreads, S::kBlocks)
    select_kernel(const SelectArgs args) {
  __shared__ uint64_t shared[2 * S::kWarps];
  wait_for_previous();
  const int64_t r = int64_t(blockIdx.x) * S::kRows + threadIdx.x / S::kThreads;
  if (r >= args.batch * args.heads * args.query_blocks) return;
  const int64_t i = r % args.query_blocks, b = r / args.query_blocks / args.heads;
  const int n = args.cu_seqlens_q[b + 1] - args.cu_seqlens_q[b];
  const int m = args.cu_seqlens_k[b + 1] - args.cu_seqlens_k[b];
  const int64_t row_words = BlockMask::words_of(args.key_blocks);
  uint32_t* words = args.words + r * row_words;
  Group<S> group(shared);
  RowStats stats;
  int64_t end = 0;
  if (i * kQueryBlock < n) {
    end = visible_blocks(i, n, m, args.options.block_size, args.options.causal).end;
    const ForcedBlocks forced = forced_blocks(i, n, m, args.options);
    const Row<S> row = load_row(args.scores + r * args.key_blocks, int(end), forced, group);
    const float threshold = args.threshold[r / args.query_blocks % args.heads];
    stats = select_visible(row, threshold, args.options.rule, words, group);
  }
  for (int64_t w = (end + 31) / 32 + group.thread(); w < row_words; w += S::kThreads) words[w] = 0;
  if (args.stats != nullptr && group.thread() == 0) args.stats[r] = stats;
}

template <class S>
CudaStatus launch(const SelectArgs& args, cudaStream_t stream) {
  const int64_t rows = args.batch * args.heads * args.query_blocks;
  const int64_t grid = (rows + S::kRows - 1) / S::kRows;
  if (grid > INT32_MAX) return "xattn select: more rows of scores than a launch takes";
  launch_overlapped(select_kernel<S>, dim3(unsigned(grid)), dim3(S::kBlockThreads), stream, args);
  return launch_status();
}

}  // namespace

CudaStatus select(const SelectArgs& args, void* stream) {
  const auto s = static_cast<cudaStream_t>(stream);
  if (args.batch * args.heads * args.query_blocks == 0) return nullptr;
  if (args.key_blocks <= 32 * 8) return launch<Shape<32, 8>>(args, s);
  if (args.key_blocks <= 128 * 8) return launch<Shape<128, 8>>(args, s);
  if (args.key_blocks <= 128 * 16) return launch<Shape<128, 16>>(args, s);
  if (args.key_blocks <= 256 * 16) return launch<Shape<256, 16>>(args, s);
  return launch<Shape<256, 0>>(args, s);
}

}  // namespace longspur::kernels::xattn::cuda
