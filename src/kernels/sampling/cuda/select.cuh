// Passes of one block over one row of logits: the maximum, and which tokens top-k, top-p and min-p
// keep.
//
// What is kept is always a prefix of the order (falling logit, rising id), so it is two numbers:
// the key of its last token and that token's id. A prefix is found by radix selection, eight bits
// of the key a pass, by count or by weight. Weights are fixed-point integers: their sums are exact
// and so do not depend on the order in which threads add them.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/common/cuda/launch.cuh"

namespace longspur::kernels::sampling::cuda {

constexpr int kThreads = 1024;
constexpr int kBins = 256;
constexpr int kSegments = 256;
constexpr uint32_t kAll = ~0u;

// Rises with the logit; -0 and +0 are equal, as they compare.
__device__ inline uint32_t key_of(float x) {
  const uint32_t bits = x == 0.0f ? 0u : __float_as_uint(x);
  return bits ^ (bits >> 31 ? 0xffffffffu : 0x80000000u);
}
__device__ inline float logit_of(uint32_t key) {
  return __uint_as_float(key ^ (key >> 31 ? 0x80000000u : 0xffffffffu));
}

struct Shared {
  uint32_t low[kBins], high[kBins];  // a histogram; 64-bit sums in two halves
  uint64_t sums[kSegments];
  float best_logit[kWarp];
  int32_t best_id[kWarp];
  uint64_t found_rest;
  uint32_t found_bin, found_sum_low, found_sum_high;
  int32_t nan, count, token;
};

struct RowView {
  const float* x;
  int64_t vocab;
};

// The tokens up to and including (key, last_id) in the order.
struct Kept {
  uint32_t key = 0;
  int32_t last_id = INT32_MAX;
  __device__ bool has(uint32_t k, int32_t id) const {
    return k > key || (k == key && id <= last_id);
  }
};

// exp((x - max) * scale) with `bits` fractional bits. bits + log2(V) <= 62: no sum overflows.
struct Weigh {
  float max, scale, unit;  // unit: 2^bits
  __device__ uint64_t operator()(float x) const {
    if (x == -INFINITY) return 0;
    return __float2ull_rn(expf((x - max) * scale) * unit);
  }
};

__device__ inline Weigh make_weigh(float max, float scale, int64_t vocab) {
  const int bits = 62 - (64 - __clzll(static_cast<long long>(vocab)));
  return {max, scale, __uint_as_float(uint32_t(127 + bits) << 23)};
}

struct Best {
  float logit = -INFINITY;
  int32_t id = INT32_MAX;
  bool nan = false;
};

__device__ inline void take_better(Best& best, float logit, int32_t id) {
  if (logit > best.logit || (logit == best.logit && id < best.id)) {
    best.logit = logit;
    best.id = id;
  }
}

__device__ inline void warp_best(Best& best) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    take_better(best, __shfl_xor_sync(~0u, best.logit, offset),
                __shfl_xor_sync(~0u, best.id, offset));
  }
}

// The first maximum, for every thread.
__device__ inline Best find_best(const RowView& row, Shared& shared) {
  Best best;
  for (int64_t i = threadIdx.x; i < row.vocab; i += kThreads) {
    const float x = row.x[i];
    best.nan |= isnan(x);
    take_better(best, x, int32_t(i));
  }
  const int warp = int(threadIdx.x) / kWarp, lane = int(threadIdx.x) % kWarp;
  best.nan = __syncthreads_or(best.nan);
  warp_best(best);
  if (lane == 0) {
    shared.best_logit[warp] = best.logit;
    shared.best_id[warp] = best.id;
  }
  __syncthreads();
  best.logit = shared.best_logit[lane];
  best.id = shared.best_id[lane];
  warp_best(best);
  __syncthreads();
  return best;
}

// Adds to a bin; 32-bit atomics are native in shared memory, 64-bit ones are not.
__device__ inline void add_to_bin(Shared& shared, int bin, uint64_t value) {
  const auto low = uint32_t(value);
  const uint32_t before = atomicAdd(&shared.low[bin], low);
  const uint32_t carry = before + low < before ? 1u : 0u;
  const uint32_t high = uint32_t(value >> 32) + carry;
  if (high != 0) atomicAdd(&shared.high[bin], high);
}

__device__ inline uint64_t bin_sum(const Shared& shared, int bin) {
  return uint64_t(shared.high[bin]) << 32 | shared.low[bin];
}

__device__ inline void clear_bins(Shared& shared) {
  if (threadIdx.x < kBins) shared.low[threadIdx.x] = shared.high[threadIdx.x] = 0;
  __syncthreads();
}

__device__ inline uint64_t warp_inclusive(uint64_t x) {
  const int lane = int(threadIdx.x) % kWarp;
#pragma unroll
  for (int offset = 1; offset < kWarp; offset *= 2) {
    const uint64_t other = __shfl_up_sync(~0u, x, offset);
    if (lane >= offset) x += other;
  }
  return x;
}

struct Crossing {
  uint32_t bin;
  uint64_t rest;  // of `wanted` for that bin, at least 1
  uint64_t sum;   // of that bin
};

// The bin in which the bins' sums, from the last bin down (or from the first up), reach `wanted`.
// wanted >= 1 and at most the sum of all.
__device__ inline Crossing find_crossing(Shared& shared, uint64_t wanted, bool falling) {
  __syncthreads();
  if (threadIdx.x < kWarp) {
    constexpr int kEach = kBins / kWarp;
    const int lane = int(threadIdx.x);
    const auto bin_at = [&](int i) {
      const int at = lane * kEach + i;
      return falling ? kBins - 1 - at : at;
    };
    uint64_t own = 0;
    for (int i = 0; i < kEach; ++i) own += bin_sum(shared, bin_at(i));
    const uint64_t past = warp_inclusive(own), before = past - own;
    if (before < wanted && wanted <= past) {  // one lane
      uint64_t rest = wanted - before;
      int i = 0;
      while (rest > bin_sum(shared, bin_at(i))) rest -= bin_sum(shared, bin_at(i++));
      shared.found_bin = uint32_t(bin_at(i));
      shared.found_rest = rest;
      shared.found_sum_low = shared.low[bin_at(i)];
      shared.found_sum_high = shared.high[bin_at(i)];
    }
  }
  __syncthreads();
  const Crossing found{shared.found_bin, shared.found_rest,
                       uint64_t(shared.found_sum_high) << 32 | shared.found_sum_low};
  __syncthreads();
  return found;
}

// The id of the nth (from 1) token whose key is `key`.
__device__ inline int32_t nth_with_key(const RowView& row,
                                       uint32_t key,
                                       uint64_t nth,
                                       Shared& shared) {
  uint32_t prefix = 0, mask = 0;
  for (int shift = 24; shift >= 0; shift -= 8) {
    if (shift > 0 && (uint64_t(row.vocab) >> shift) == 0) {  // all ids have zeros there
      mask |= 0xffu << shift;
      continue;
    }
    clear_bins(shared);
    for (int64_t i = threadIdx.x; i < row.vocab; i += kThreads) {
      const auto id = uint32_t(i);
      if ((id & mask) == prefix && key_of(row.x[i]) == key)
        atomicAdd(&shared.low[(id >> shift) & 0xffu], 1u);
    }
    const Crossing found = find_crossing(shared, nth, false);
    nth = found.rest;
    prefix |= found.bin << shift;
    mask |= 0xffu << shift;
  }
  return int32_t(prefix);
}

// The shortest prefix whose values reach `wanted`. value(x) is that of a token in `among`; tokens
// of one key have one value.
template <class Value>
__device__ Kept shortest_prefix(
    const RowView& row, const Kept& among, uint64_t wanted, const Value& value, Shared& shared) {
  uint32_t prefix = 0, mask = 0;
  uint64_t sum = 0;
  for (int shift = 24; shift >= 0; shift -= 8) {
    clear_bins(shared);
    for (int64_t i = threadIdx.x; i < row.vocab; i += kThreads) {
      const float x = row.x[i];
      const uint32_t key = key_of(x);
      if ((key & mask) != prefix || !among.has(key, int32_t(i))) continue;
      const uint64_t v = value(x);
      if (v != 0) add_to_bin(shared, int((key >> shift) & 0xffu), v);
    }
    const Crossing found = find_crossing(shared, wanted, true);
    wanted = found.rest;
    sum = found.sum;
    prefix |= found.bin << shift;
    mask |= 0xffu << shift;
  }
  // `sum` is now that of the tokens with the last key, which are equal: how many of them?
  const uint64_t each = value(logit_of(prefix));
  const uint64_t needed = (wanted + each - 1) / each, present = sum / each;
  if (needed >= present) return {prefix, prefix == among.key ? among.last_id : INT32_MAX};
  return {prefix, nth_with_key(row, prefix, needed, shared)};
}

// Sum over the kept tokens, for every thread.
__device__ inline uint64_t sum_kept(const RowView& row,
                                    const Kept& kept,
                                    const Weigh& weigh,
                                    Shared& shared) {
  clear_bins(shared);
  uint64_t sum = 0;
  for (int64_t i = threadIdx.x; i < row.vocab; i += kThreads) {
    const float x = row.x[i];
    if (kept.has(key_of(x), int32_t(i))) sum += weigh(x);
  }
  sum = warp_inclusive(sum);
  if (threadIdx.x % kWarp == kWarp - 1) add_to_bin(shared, 0, sum);
  __syncthreads();
  const uint64_t total = bin_sum(shared, 0);
  __syncthreads();
  return total;
}

}  // namespace longspur::kernels::sampling::cuda
