// A computing warpgroup of the fast forward kernel: 64 query rows of an item.
//
// The product of tile j's scores is under way together with that of tile j - 1's values, and the
// softmax of tile j runs under the latter. Looking for a row's largest score costs more than any
// other step of it (maxima run at half the rate, and four dependent shuffles wait for them), so
// only the first tile's is looked for, and those of the others that a mask touches. Later tiles
// take
//   p = 2^(scale s - m)
// with the m they find. A row of which p has grown too far is scaled back by a power of two, which
// rounds nothing: p, the sum and out by 2^-e, and m grows by e. Growth beyond fp32 in one tile
// makes infinities; the item is then marked and done again with the largest score of each tile.
//
// Registers of a lane l of warp w hold rows 16 w + l / 4 and 8 below: element 4 i + {0, 1} is the
// upper row's columns 8 i + 2 (l % 4) + {0, 1}, 4 i + {2, 3} the lower row's.
#pragma once

#include <cfloat>

#include "kernels/block_sparse/cuda/forward_layout.cuh"

namespace longspur::kernels::block_sparse::cuda {

// Sum of a row's p in one lane above which it is scaled back; P must stay finite in its type.
template <class Element>
inline constexpr float kLargestSum = 1048576.0f;
template <>
inline constexpr float kLargestSum<__half> = 32768.0f;

__device__ inline float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(~0u, x, 1));
  return fmaxf(x, __shfl_xor_sync(~0u, x, 2));
}
__device__ inline float quad_sum(float x) {
  x += __shfl_xor_sync(~0u, x, 1);
  return x + __shfl_xor_sync(~0u, x, 2);
}

// The softmax of a lane's two rows.
template <class Element>
struct Softmax {
  float scale;          // by which scores become powers of two
  float m[2], sum[2];   // sum: of this lane's p
  float factor[2];      // of out, where `rescale`
  int limit[2];         // keys that the row sees
  bool valid[2];        // rows of the sequence
  bool rescale, unset;  // unset: some row of the warp has seen no key yet
  bool overflow;

  __device__ Softmax(const ItemRecord& item, int first_row, bool causal, float scale_log2)
      : scale(scale_log2), rescale(false), unset(true), overflow(false) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = item.row + first_row + r * 8;
      m[r] = -INFINITY;
      sum[r] = 0.0f;
      valid[r] = row < item.queries;
      limit[r] = causal ? min(item.keys, item.keys - item.queries + row + 1) : item.keys;
    }
  }

  __device__ void mask(float (&s)[64], const int (&first)[2]) const {
    const int column = int(threadIdx.x) % 4 * 2;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int upper = limit[0] - first[half] - column, lower = limit[1] - first[half] - column;
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        float* x = &s[half * 32 + i * 4];
        if (i * 8 >= upper) x[0] = -INFINITY;
        if (i * 8 + 1 >= upper) x[1] = -INFINITY;
        if (i * 8 >= lower) x[2] = -INFINITY;
        if (i * 8 + 1 >= lower) x[3] = -INFINITY;
      }
    }
  }

  // s becomes p; the rows' largest scores are in m after it.
  __device__ void exact(float (&s)[64]) {
    float most[2] = {s[0], s[2]};
#pragma unroll
    for (int i = 0; i < 64; i += 4) {
      most[0] = fmaxf(most[0], fmaxf(s[i], s[i + 1]));
      most[1] = fmaxf(most[1], fmaxf(s[i + 2], s[i + 3]));
    }
    bool empty = false;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float now = fmaxf(m[r], quad_max(most[r]) * scale);
      const bool none = now == -INFINITY;
      factor[r] = none ? 1.0f : exp2_fast(m[r] - now);
      sum[r] *= factor[r];
      m[r] = now;
      empty |= none && valid[r];
    }
    unset = __any_sync(~0u, empty);
    rescale = true;
    float added[2];
    exponents(s, added);
    sum[0] += added[0];
    sum[1] += added[1];
  }

  // The same with the m there is.
  __device__ void fast(float (&s)[64]) {
    float added[2];
    exponents(s, added);
    rescale = __any_sync(~0u, !(added[0] + added[1] <= kLargestSum<Element>));
    if (rescale) scale_back(s, added);
    sum[0] += added[0];
    sum[1] += added[1];
  }

 private:
  __device__ void exponents(float (&s)[64], float (&added)[2]) const {
    const float upper = m[0] == -INFINITY ? 0.0f : -m[0], lower = m[1] == -INFINITY ? 0.0f : -m[1];
    float sums[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
    for (int i = 0; i < 64; i += 4) {
      s[i] = exp2_fast(fmaf(s[i], scale, upper));
      s[i + 1] = exp2_fast(fmaf(s[i + 1], scale, upper));
      s[i + 2] = exp2_fast(fmaf(s[i + 2], scale, lower));
      s[i + 3] = exp2_fast(fmaf(s[i + 3], scale, lower));
      sums[0] += s[i];
      sums[1] += s[i + 1];
      sums[2] += s[i + 2];
      sums[3] += s[i + 3];
    }
    added[0] = sums[0] + sums[1];
    added[1] = sums[2] + sums[3];
  }

  __device__ void scale_back(float (&s)[64], float (&added)[2]) {
    bool lost = false;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float most = quad_sum(added[r]);  // at least each of its terms
      const bool fits = most < 0x1p126f;      // no infinity, no NaN
      lost |= !fits && valid[r];
      const int exponent = fits ? max(int(__float_as_uint(most) >> 23) - 127, 0) : 0;
      factor[r] = __uint_as_float(uint32_t(127 - exponent) << 23);
      m[r] += float(exponent);
      sum[r] *= factor[r];
      added[r] *= factor[r];
    }
    overflow |= __any_sync(~0u, lost) != 0;
#pragma unroll
    for (int i = 0; i < 64; i += 4) {
      s[i] *= factor[0];
      s[i + 1] *= factor[0];
      s[i + 2] *= factor[1];
      s[i + 3] *= factor[1];
    }
  }
};

// Four words of each of four lanes: lane t gets the others' word t.
__device__ inline void transpose_quad(uint32_t (&w)[4]) {
  const int t = int(threadIdx.x) % 4;
  const bool odd = (t & 1) != 0, high = (t & 2) != 0;
#pragma unroll
  for (int i = 0; i < 4; i += 2) {
    const uint32_t other = __shfl_xor_sync(~0u, odd ? w[i] : w[i + 1], 1);
    (odd ? w[i] : w[i + 1]) = other;
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const uint32_t other = __shfl_xor_sync(~0u, high ? w[i] : w[i + 2], 2);
    (high ? w[i] : w[i + 2]) = other;
  }
}

template <class Element, class S>
class Consumer {
 public:
  static constexpr int kSums = S::kDim / 2;

  __device__ Consumer(const ForwardParams& p, ForwardShared<S> shared, int group)
      : p_(p),
        shared_(shared),
        group_(group),
        first_row_(group * kGroupRows + int(threadIdx.x) % kGroupThreads / kWarp * 16 +
                   int(threadIdx.x) % kWarp / 4),
        queries_(rows_descriptor(shared.queries(group))) {}

  __device__ void run() {
    for (uint32_t items = 0;; ++items) {
      wait_barrier(shared_.full_queries(group_), items & 1u);
      const ItemRecord item = shared_.item(items);
      __syncwarp();
      // From memory through a shuffle: the compiler must know that a warp agrees on it.
      const int tiles = __shfl_sync(~0u, item.tiles, 0);
      if (tiles < 0) return;
      float out[kSums];
#pragma unroll
      for (int i = 0; i < kSums; ++i) out[i] = 0.0f;
      Softmax<Element> softmax(item, first_row_, p_.causal, p_.scale_log2);
      if (tiles == 0)
        release(shared_.empty_queries(group_));
      else
        attend(item, tiles, softmax, out);
      store(item, softmax, out);
    }
  }

 private:
  // A warp's lanes have read what they wanted.
  static __device__ void release(uint32_t barrier) {
    __syncwarp();
    if (threadIdx.x % kWarp == 0) arrive(barrier);
  }

  __device__ void attend(const ItemRecord& item,
                         int tiles,
                         Softmax<Element>& softmax,
                         float (&out)[kSums]) {
    const int masked = __shfl_sync(~0u, item.masked, 0);
    const bool exact = __shfl_sync(~0u, item.exact, 0) != 0;
    float s[64];
    uint32_t p[8][4];
    issue_scores(n_, s);
    wgmma_wait<0>();
    hold_sums(s);
    soften<true>(n_, masked > 0, true, softmax, s);
    pack(s, p);
    for (int j = 1; j < tiles; ++j) {
      const uint32_t n = n_ + uint32_t(j);
      issue_scores(n, s);
      if (j == 1) clear_tail(item, n - 1);
      issue_values(n - 1, p, out);
      wgmma_wait<1>();
      hold_sums(s);
      if (j == tiles - 1) release(shared_.empty_queries(group_));
      soften<false>(n, j < masked, exact, softmax, s);
      wgmma_wait<0>();
      hold_sums(out);
      release(shared_.empty_values(n - 1));
      if (softmax.rescale) scale_out(softmax, out);
      pack(s, p);
    }
    if (tiles == 1) {
      release(shared_.empty_queries(group_));
      clear_tail(item, n_);
    }
    n_ += uint32_t(tiles);
    issue_values(n_ - 1, p, out);
    wgmma_wait<0>();
    hold_sums(out);
    if (softmax.overflow && threadIdx.x % kWarp == 0)
      shared_.pending(uint32_t(item.pending)).overflow = 1;
    release(shared_.empty_values(n_ - 1));
  }

  // 16 keys further on, in a descriptor's units: the halves of a tile of values follow each other.
  static constexpr uint32_t value_step(int k) {
    return uint32_t(k / 4) * (S::kTileBytes / 2 / 16) + uint32_t(k % 4) * kRowStep;
  }
  __device__ void issue_scores(uint32_t n, float (&s)[64]) const {
    wait_barrier(shared_.full_keys(n), shared_.phase(n));
    const uint32_t keys = rows_descriptor(shared_.keys(n));
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < S::kDim / 16; ++k) {
      SharedProduct<Element, 128>::run(s, descriptor(queries_ + column_step<kGroupRows>(k)),
                                       descriptor(keys + column_step<kTileKeys>(k)), k == 0);
    }
    wgmma_commit();
  }
  __device__ void issue_values(uint32_t n, const uint32_t (&p)[8][4], float (&out)[kSums]) const {
    wait_barrier(shared_.full_values(n), shared_.phase(n));
    const uint32_t values = columns_descriptor<kGroupRows>(shared_.values(n));
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < 8; ++k)
      ColumnsProduct<Element, S::kDim>::run(out, p[k], descriptor(values + value_step(k)));
    wgmma_commit();
  }

  // The scores of tile n to p, and the tile's keys are free.
  template <bool kFirst>
  __device__ void soften(
      uint32_t n, bool masked, bool exact, Softmax<Element>& softmax, float (&s)[64]) const {
    if (!kFirst && !masked && !exact && !softmax.unset) {
      release(shared_.empty_keys(n));
      softmax.fast(s);
      return;
    }
    if (masked) softmax.mask(s, shared_.tile(n).first);
    release(shared_.empty_keys(n));
    softmax.exact(s);
  }

  // The first tile's rows of values that are not the sequence's may hold anything, NaN included,
  // which zero times is not zero. Both warpgroups write the same.
  __device__ void clear_tail(const ItemRecord& item, uint32_t n) const {
    const int tail = __shfl_sync(~0u, item.tail, 0);
    if (tail == 0) return;
    wait_barrier(shared_.full_values(n), shared_.phase(n));
    const int row = int(threadIdx.x) % kGroupThreads;
    if (row >= tail && row < p_.block_size) {
#pragma unroll
      for (int i = 0; i < S::kHalves * 8; ++i) {
        const uint32_t to =
            shared_.values(n) + uint32_t(row / kGroupRows) * (S::kTileBytes / 2) +
            uint32_t((i / 8 * kGroupRows + row % kGroupRows) * kRowBytes + i % 8 * 16);
        asm volatile("st.shared.v4.u32 [%0], {%1, %1, %1, %1};" ::"r"(to), "r"(0) : "memory");
      }
    }
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    asm volatile("bar.sync %0, %1;" ::"r"(1 + group_), "n"(kGroupThreads) : "memory");
  }

  static __device__ void pack(float (&s)[64], uint32_t (&p)[8][4]) {
#pragma unroll
    for (int k = 0; k < 8; ++k) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        p[k][i] = pack_pair<Element>(s[k * 8 + i * 2], s[k * 8 + i * 2 + 1]);
      }
    }
  }
  static __device__ void scale_out(const Softmax<Element>& softmax, float (&out)[kSums]) {
#pragma unroll
    for (int i = 0; i < kSums; ++i) out[i] *= softmax.factor[i % 4 / 2];
  }

  // Rows of 16-bit results, 16 bytes a lane, and their lse.
  __device__ void store(const ItemRecord& item,
                        const Softmax<Element>& softmax,
                        const float (&out)[kSums]) const {
    float factor[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float sum = quad_sum(softmax.sum[r]);
      factor[r] = sum == 0.0f ? 0.0f : 1.0f / sum;
      const int row = item.row + first_row_ + r * 8;
      if (softmax.valid[r] && threadIdx.x % 4 == 0) {
        p_.lse[int64_t(item.head) * p_.lse_stride + item.query_token + row] =
            sum == 0.0f ? -INFINITY : (softmax.m[r] + log2f(sum)) * 0.693147180559945309f;
      }
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int64_t token = int64_t(item.query_token) + item.row + first_row_ + r * 8;
      uint16_t* row = p_.out + token * p_.out_token_stride +
                      int64_t(item.head) * p_.out_head_stride + threadIdx.x % 4 * 8;
#pragma unroll
      for (int i = 0; i < S::kDim / 32; ++i) {
        uint32_t w[4];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const float* x = &out[(i * 4 + j) * 4 + r * 2];
          w[j] = pack_pair<Element>(x[0] * factor[r], x[1] * factor[r]);
        }
        transpose_quad(w);
        if (softmax.valid[r])
          __stcs(reinterpret_cast<uint4*>(row + i * 32), make_uint4(w[0], w[1], w[2], w[3]));
      }
    }
  }

  const ForwardParams& p_;
  const ForwardShared<S> shared_;
  const int group_, first_row_;
  const uint32_t queries_;  // descriptor
  uint32_t n_ = 0;          // tiles so far
};

}  // namespace longspur::kernels::block_sparse::cuda
