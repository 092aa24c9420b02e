// One block draws one row's token. Floor: the row is read from L2 once a pass; a greedy row takes
// one pass, plain temperature three, filters four more each.
#include <cuda_runtime.h>

#include <cmath>

#include "kernels/common/cuda/launch.cuh"
#include "kernels/common/cuda/status.cuh"
#include "kernels/sampling/cuda/sample_cuda.h"
#include "kernels/sampling/cuda/select.cuh"

namespace longspur::kernels::sampling::cuda {

namespace {

// In the counts: the id occurs in the prompt. Below it: occurrences in the output.
constexpr int32_t kInPrompt = 1 << 30;

__device__ float penalised(float x, int32_t count, const Row& row) {
  if (row.repetition != 1.0f) x = x < 0.0f ? x * row.repetition : x / row.repetition;
  const int32_t n = count & (kInPrompt - 1);
  if (n == 0 || (row.frequency == 0.0 && row.presence == 0.0)) return x;
  // As the host compiler evaluates it: no fused multiply-add.
  const double penalty = __dadd_rn(__dmul_rn(row.frequency, double(n)), row.presence);
  return float(double(x) - penalty);
}

// Applies the penalties to every id that `range` names, once: the first to take the id's count
// does.
__device__ void penalise(
    Range range, const int32_t* ids, int32_t* counts, const Row& row, float* x) {
  for (int32_t i = range.begin + int32_t(threadIdx.x); i < range.end; i += kThreads) {
    const int32_t count = atomicExch(&counts[ids[i]], 0);
    if (count != 0) x[ids[i]] = penalised(x[ids[i]], count, row);
  }
}

// x = the row's logits after penalties, bias and bans.
__device__ void edit(const SampleRowsArgs& args, const Row& row, const float* from, float* x) {
  for (int64_t i = threadIdx.x; i < args.vocab; i += kThreads) x[i] = from[i];
  int32_t* counts = args.counts + int64_t(blockIdx.x) * args.vocab;
  for (int32_t i = row.prompt.begin + int32_t(threadIdx.x); i < row.prompt.end; i += kThreads)
    atomicOr(&counts[args.ids[i]], kInPrompt);
  __syncthreads();
  for (int32_t i = row.output.begin + int32_t(threadIdx.x); i < row.output.end; i += kThreads)
    atomicAdd(&counts[args.ids[i]], 1);
  __syncthreads();
  penalise(row.prompt, args.ids, counts, row, x);
  penalise(row.output, args.ids, counts, row, x);
  __syncthreads();
  for (int32_t i = row.bias.begin + int32_t(threadIdx.x); i < row.bias.end; i += kThreads) {
    const int32_t id = args.bias[i].id;
    if (i > row.bias.begin && args.bias[i - 1].id == id) continue;  // the run's first takes it all
    for (int32_t j = i; j < row.bias.end && args.bias[j].id == id; ++j)
      x[id] = float(double(x[id]) + args.bias[j].value);
  }
  __syncthreads();
  for (int32_t i = row.banned.begin + int32_t(threadIdx.x); i < row.banned.end; i += kThreads)
    x[args.ids[i]] = -INFINITY;
  __syncthreads();
}

__device__ Outcome outcome_of(const Best& best) {
  if (best.nan) return Outcome::kNan;
  if (best.logit == INFINITY) return Outcome::kInfinite;
  return best.logit == -INFINITY ? Outcome::kAllBanned : Outcome::kDrawn;
}

// Weight of token i when it is kept, else 0.
struct KeptWeight {
  Kept kept;
  Weigh weigh;
  double floor;
  __device__ uint64_t operator()(float x, int64_t i) const {
    return kept.has(key_of(x), int32_t(i)) && double(x) >= floor ? weigh(x) : 0;
  }
};

// The token in which the sum of kept weights, by rising id, passes draw * total.
__device__ int32_t draw(const RowView& row,
                        const KeptWeight& weight,
                        uint64_t fraction,
                        Shared& shared) {
  const int warp = int(threadIdx.x) / kWarp, lane = int(threadIdx.x) % kWarp;
  const int64_t steps = (row.vocab + int64_t(kSegments) * kWarp - 1) / (kSegments * kWarp);
  const int64_t length = steps * kWarp;
  for (int segment = warp; segment < kSegments; segment += kThreads / kWarp) {
    uint64_t sum = 0;
    for (int64_t step = 0; step < steps; ++step) {
      const int64_t i = segment * length + step * kWarp + lane;
      if (i < row.vocab) sum += weight(row.x[i], i);
    }
    sum = warp_inclusive(sum);
    if (lane == kWarp - 1) shared.sums[segment] = sum;
  }
  __syncthreads();
  if (warp == 0) {
    constexpr int kEach = kSegments / kWarp;
    uint64_t own = 0;
    for (int i = 0; i < kEach; ++i) own += shared.sums[lane * kEach + i];
    const uint64_t past = warp_inclusive(own), before = past - own;
    const uint64_t total = __shfl_sync(~0u, past, kWarp - 1);
    const uint64_t target = __umul64hi(total, fraction);  // < total
    int segment = 0;
    uint64_t rest = 0;
    const bool mine = before <= target && target < past;
    if (mine) {
      rest = target - before;
      segment = lane * kEach;
      while (rest >= shared.sums[segment]) rest -= shared.sums[segment++];
    }
    const int owner = __ffs(int(__ballot_sync(~0u, mine))) - 1;
    segment = __shfl_sync(~0u, segment, owner);
    rest = __shfl_sync(~0u, rest, owner);
    for (int64_t step = 0; step < steps; ++step) {
      const int64_t i = segment * length + step * kWarp + lane;
      const uint64_t past_i = warp_inclusive(i < row.vocab ? weight(row.x[i], i) : 0);
      const unsigned passed = __ballot_sync(~0u, past_i > rest);
      if (passed != 0) {
        if (lane == __ffs(int(passed)) - 1) shared.token = int32_t(i);
        break;
      }
      rest -= __shfl_sync(~0u, past_i, kWarp - 1);
    }
  }
  __syncthreads();
  return shared.token;
}

struct One {
  __device__ uint64_t operator()(float) const { return 1; }
};

__device__ int32_t choose(const RowView& view, const Row& row, const Best& best, Shared& shared) {
  if (row.greedy) return best.id;
  KeptWeight weight;
  weight.weigh = make_weigh(best.logit, row.scale, view.vocab);
  weight.floor = double(best.logit) + row.floor_offset;
  if (row.top_k > 0)
    weight.kept = shortest_prefix(view, Kept{}, uint64_t(row.top_k), One{}, shared);
  if (row.top_p < 1.0) {
    const uint64_t total = sum_kept(view, weight.kept, weight.weigh, shared);
    const auto mass = uint64_t(ceil(row.top_p * double(total)));
    weight.kept = shortest_prefix(view, weight.kept, min(max(mass, uint64_t(1)), total),
                                  weight.weigh, shared);
  }
  return draw(view, weight, row.draw, shared);
}

// Log of the sum of exp, and the best entries.
__device__ void fill_top(const RowView& view,
                         const Best& best,
                         int32_t top,
                         RowResult& result,
                         Entry* entries,
                         Shared& shared) {
  const Weigh weigh = make_weigh(best.logit, 1.0f, view.vocab);
  const uint64_t total = sum_kept(view, Kept{}, weigh, shared);
  if (threadIdx.x == 0) {
    shared.count = 0;
    result.log_total = double(best.logit) + log(double(total) / double(weigh.unit));
  }
  if (top > 0) {
    const Kept kept = shortest_prefix(view, Kept{}, uint64_t(top), One{}, shared);
    for (int64_t i = threadIdx.x; i < view.vocab; i += kThreads) {
      if (kept.has(key_of(view.x[i]), int32_t(i)))
        entries[atomicAdd(&shared.count, 1)] = {int32_t(i), view.x[i]};
    }
  }
  __syncthreads();
  if (threadIdx.x == 0) result.top_count = shared.count;
}

__global__ void __launch_bounds__(kThreads) sample_kernel(SampleRowsArgs args) {
  __shared__ Shared shared;
  const int64_t offset = int64_t(blockIdx.x) * args.vocab;
  const Row& row = args.rows[blockIdx.x];
  RowResult& result = args.results[blockIdx.x];
  const RowView raw{args.logits + offset, args.vocab};
  const Best raw_best = find_best(raw, shared);
  RowView view = raw;
  Best best = raw_best;
  Outcome outcome = outcome_of(raw_best);
  if (outcome == Outcome::kDrawn && row.edited) {
    edit(args, row, raw.x, args.adjusted + offset);
    view.x = args.adjusted + offset;
    best = find_best(view, shared);
    outcome = outcome_of(best);
  }
  const int32_t token = outcome == Outcome::kDrawn ? choose(view, row, best, shared) : -1;
  if (threadIdx.x == 0) result = {outcome, token, token < 0 ? 0.0f : raw.x[token], 0, 0.0};
  if (token >= 0 && row.top >= 0) {
    fill_top(raw, raw_best, row.top, result, args.top + int64_t(blockIdx.x) * kMaxTop, shared);
  }
}

}  // namespace

CudaStatus sample_rows(const SampleRowsArgs& args, void* stream) {
  if (args.row_count == 0) return nullptr;
  sample_kernel<<<static_cast<unsigned>(args.row_count), kThreads, 0,
                  static_cast<cudaStream_t>(stream)>>>(args);
  return launch_status();
}

}  // namespace longspur::kernels::sampling::cuda
