// A consumer of the backward's main kernel: a warpgroup with 64 keys, whose dk and dv it holds in
// registers while tiles of query rows pass by.
//
//   s^T = k q^T    dp^T = v grad_out^T        products of shared memory
//   p^T = exp2(s^T - lse)   ds^T = p^T (dp^T - delta)
//   dv += p^T grad_out      dk += ds^T q      left operands from registers
//   dq = ds k                                 both consumers' ds, by way of shared memory
//
// Of dq, consumer w sums half the columns (D = 128) or half the rows (D = 64) over all 128 keys and
// adds it to the workspace with vector reductions. A tile there is in the order of the registers,
// [w][4 registers][128 threads][4], so that they are coalesced.
#pragma once

#include "kernels/block_sparse/cuda/backward_tile.cuh"

namespace longspur::kernels::block_sparse::cuda {

// d[64][64] (+)= a[16][64]^T b[16][64], both in shared memory, read by columns.
template <class Element>
__device__ void columns_by_columns(float (&d)[32], uint64_t a, uint64_t b, bool first);
#define LONGSPUR_F8(i)                                                                \
  "+f"(d[i]), "+f"(d[(i) + 1]), "+f"(d[(i) + 2]), "+f"(d[(i) + 3]), "+f"(d[(i) + 4]), \
      "+f"(d[(i) + 5]), "+f"(d[(i) + 6]), "+f"(d[(i) + 7])
#define LONGSPUR_COLUMNS_BY_COLUMNS(TYPE, PTX)                                               \
  template <>                                                                                \
  __device__ inline void columns_by_columns<TYPE>(float(&d)[32], uint64_t a, uint64_t b,     \
                                                  bool first) {                              \
    asm volatile(                                                                            \
        "{\n.reg .pred add;\nsetp.eq.u32 add, %34, 0;\n"                                     \
        "wgmma.mma_async.sync.aligned.m64n64k16.f32." PTX "." PTX                            \
        " {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, " \
        "%18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "            \
        "%32, %33, add, 1, 1, 1, 1;\n}"                                                      \
        : LONGSPUR_F8(0), LONGSPUR_F8(8), LONGSPUR_F8(16), LONGSPUR_F8(24)                   \
        : "l"(a), "l"(b), "r"(uint32_t(first)));                                             \
  }
LONGSPUR_COLUMNS_BY_COLUMNS(__nv_bfloat16, "bf16")
LONGSPUR_COLUMNS_BY_COLUMNS(__half, "f16")
#undef LONGSPUR_COLUMNS_BY_COLUMNS
#undef LONGSPUR_F8

__device__ inline float2 load_shared_pair(uint32_t address) {
  float2 v;
  asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(v.x), "=f"(v.y) : "r"(address));
  return v;
}
__device__ inline void store_matrices(uint32_t address, const uint32_t (&v)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address),
               "r"(v[0]), "r"(v[1]), "r"(v[2]), "r"(v[3])
               : "memory");
}
__device__ inline void add_global(float* to, float a, float b, float c, float d) {
  asm volatile("red.relaxed.gpu.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(to), "f"(a),
               "f"(b), "f"(c), "f"(d)
               : "memory");
}
// Plain writes to shared memory before this are seen by products and copies after it.
__device__ inline void fence_shared() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
// The registers hold nothing from here on. Sums that begin anew must not look as if they went on
// from what ordinary instructions computed while other products were under way: the compiler would
// serialise all of them.
template <int kCount>
__device__ inline void forget(float (&d)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "=f"(d[i]));
}
template <int kCount>
__device__ void sync_threads(int barrier) {
  asm volatile("bar.sync %0, %1;" ::"r"(barrier), "n"(kCount) : "memory");
}
__device__ inline void sync_consumers() { sync_threads<kConsumerThreads>(1); }

template <class T>
class KeyConsumer {
  using Element = typename T::Element;
  static constexpr int kDim = T::kHeadDim, kQueries = T::kQueries;
  static constexpr int kSums = kDim / 2;  // registers of dk, of dv
  static constexpr int kRows = 64;        // of queries, at a time
  static constexpr int kQueryParts = kQueries / kRows;
  static constexpr int kScores = kRows / 2;                  // registers of s^T, of dp^T
  static constexpr int kSteps = kRows / 16;                  // of a product over queries
  static constexpr uint32_t kPartBytes = kRows * kRowBytes;  // from a part of q to the next
  static constexpr uint32_t kHalfBytes = kKeys * kRowBytes;  // 64 columns of keys
  static constexpr float kLog2e = 1.44269504f;

 public:
  __device__ KeyConsumer(const BackwardParams& params,
                         const BackwardShared<T>& shared,
                         const Rows& dk,
                         const Rows& dv)
      : p_(params),
        shared_(shared),
        dk_rows_(dk),
        dv_rows_(dv),
        w_(__shfl_sync(~0u, int(threadIdx.x) / kGroupThreads, 0)),
        thread_(int(threadIdx.x) % kGroupThreads),
        lane_(int(threadIdx.x) % kWarp),
        unit_(params.scale * kLog2e) {}

  __device__ void run() {
    for (uint32_t round = 0;; ++round) {
      wait_barrier(shared_.kv_full, round & 1u);
      item_ = KeyItem::load(shared_.item);
      if (item_.end()) return;
      float dk[kSums], dv[kSums];
#pragma unroll
      for (int i = 0; i < kSums; ++i) dk[i] = dv[i] = 0.0f;
      if (!item_.empty()) {
        if (item_.keys < kKeys) clear_missing_keys();
        run_steps(dk, dv);
      }
      if (item_.slot >= 0) {
        if (lane_ == 0) arrive(shared_.kv_empty);
        add_sums(0, dk);
        add_sums(1, dv);
        continue;
      }
      store_sums(dv_rows_, dv, 1.0f);
      store_sums(dk_rows_, dk, p_.scale);
      fence_shared();  // the next copy overwrites what was stored in v's place
      if (lane_ == 0) arrive(shared_.kv_empty);
    }
  }

 private:
  // Products are under way nearly always: dk's of a step while dq is added up and the next s
  // begins, dp's during the exponentials, dv's during the rest.
  __device__ void run_steps(float (&dk)[kSums], float (&dv)[kSums]) {
    for (bool first = true, last = false; !last; first = false) {
      const QueryStep step = begin_step(steps_);
      const BackwardStage<T> stage(shared_, steps_);
      const uint32_t ds = shared_.ds + uint32_t((steps_ & 1) * T::kGradBytes);
      last = step.last();
      uint32_t packed[kSteps][4];
#pragma unroll
      for (int part = 0; part < kQueryParts; ++part) {
        const uint32_t q = stage.q + part * kPartBytes,
                       grad_out = stage.grad_out() + part * kPartBytes;
        if (part > 0) {
          multiply(packed, q - kPartBytes, dk);
          wgmma_commit();
        }
        float s[kScores], dp[kScores];
        scores(shared_.k, q, s);
        wgmma_commit();
        scores(shared_.v, grad_out, dp);
        wgmma_commit();
        wgmma_wait<1>();  // s, and dk of the part before
        hold_sums(s);
        if (part == 0 && !first) release(steps_ - 1);
        if (step.masked())
          probabilities<true>(step, stage, part, s, packed);
        else
          probabilities<false>(step, stage, part, s, packed);
        multiply(packed, grad_out, dv);
        wgmma_commit();
        wgmma_wait<1>();  // dp
        hold_sums(dp);
        if (step.masked())
          gradients<true>(step, stage, part, s, dp, ds, packed);
        else
          gradients<false>(step, stage, part, s, dp, ds, packed);
      }
      fence_shared();
      sync_consumers();  // both halves of ds
      float dq[32];
      query_gradients(ds, dq);
      wgmma_commit();
      multiply(packed, stage.q + (kQueryParts - 1) * kPartBytes, dk);
      wgmma_commit();
      wgmma_wait<1>();  // dq, and dv
      hold_sums(dq);
      add_query_gradients(step, dq);
      ++steps_;
    }
    wgmma_wait<0>();
    hold_sums(dk);
    hold_sums(dv);
    release(steps_ - 1);
  }

  // Waits for a step's tiles. Rows beyond the sequence are other sequences': they become zeros, for
  // a probability of 0 does not make up for a NaN.
  __device__ QueryStep begin_step(int n) const {
    const BackwardStage<T> stage(shared_, n);
    wait_barrier(stage.full, stage.round & 1u);
    const QueryStep step = QueryStep::load(stage.record);
    if (step.rows() < kQueries) {
      clear_rows<kQueries>(stage.q, step.rows());
      clear_rows<kQueries>(stage.grad_out(), step.rows());
      fence_shared();
      sync_consumers();
    }
    return step;
  }
  __device__ void clear_missing_keys() const {
    clear_rows<kKeys>(shared_.k, item_.keys);
    clear_rows<kKeys>(shared_.v, item_.keys);
    fence_shared();
    sync_consumers();
  }
  template <int kRows>
  __device__ void clear_rows(uint32_t tile, int first) const {
    const int chunks = (kRows - first) * (kRowBytes / 16);
    for (int i = int(threadIdx.x); i < kDim / 64 * chunks; i += kConsumerThreads) {
      const int row = first + i % chunks / (kRowBytes / 16);
      store_record(tile + uint32_t((i / chunks * kRows + row) * kRowBytes + i % 8 * 16),
                   make_int4(0, 0, 0, 0));
    }
  }
  __device__ void release(int n) const {
    if (lane_ == 0) arrive(BackwardStage<T>(shared_, n).empty);
  }

  // This consumer's 64 rows of `keys` times the rows of `queries`.
  __device__ void scores(uint32_t keys, uint32_t queries, float (&d)[kScores]) const {
    const uint32_t a = rows_descriptor(keys + uint32_t(w_ * kGroupKeys * kRowBytes));
    const uint32_t b = rows_descriptor(queries);
    forget(d);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < kDim / 16; ++k) {
      SharedProduct<Element, kRows>::run(d, descriptor(a + column_step<kKeys>(k)),
                                         descriptor(b + column_step<kQueries>(k)), k == 0);
    }
  }

  // d += a b, b rows of queries.
  __device__ void multiply(const uint32_t (&a)[kSteps][4], uint32_t b, float (&d)[kSums]) const {
    const uint32_t low = columns_descriptor<kQueries>(b);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < kSteps; ++k)
      ColumnsProduct<Element, kDim>::run(d, a[k], descriptor(low + uint32_t(k) * kRowStep));
  }

  __device__ void query_gradients(uint32_t ds, float (&dq)[32]) const {
    const uint32_t a =
        columns_descriptor<kKeys>(ds + (kDim == 64 ? uint32_t(w_) * kHalfBytes : 0u));
    const uint32_t b =
        columns_descriptor<kKeys>(shared_.k + (kDim == 128 ? uint32_t(w_) * kHalfBytes : 0u));
    forget(dq);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < kKeys / 16; ++k) {
      columns_by_columns<Element>(dq, descriptor(a + uint32_t(k) * kRowStep),
                                  descriptor(b + uint32_t(k) * kRowStep), k == 0);
    }
  }

  // Registers 4 i .. + 3 of a product's sums are rows r, r, r + 8, r + 8 and columns
  // c, c + 1, c, c + 1 with r = 16 warp + lane / 4 and c = 8 i + 2 (lane % 4).
  __device__ int first_row() const { return thread_ / kWarp * 16 + lane_ / 4; }

  // Whether row r of the queries sees the key, and reads its block.
  struct Mask {
    int key, edge, keys;  // of the upper row; see QueryStep
    __device__ bool hides(int i, int row) const {
      const int at = key + i % 4 / 2 * 8;
      return at >= edge + row || at >= keys;
    }
  };
  __device__ Mask mask(const QueryStep& step, int part) const {
    return {w_ * kGroupKeys + first_row(), step.edge + part * kRows + lane_ % 4 * 2,
            step.active(w_) ? item_.keys : 0};
  }

  // p^T in place of s^T, and as a left operand.
  template <bool kMasked>
  __device__ void probabilities(const QueryStep& step,
                                const BackwardStage<T>& stage,
                                int part,
                                float (&s)[kScores],
                                uint32_t (&a)[kSteps][4]) const {
    const uint32_t lse = stage.stats() + uint32_t(part * kRows * 4 + lane_ % 4 * 8);
    const Mask hidden = mask(step, part);
#pragma unroll
    for (int i = 0; i < kScores / 4; ++i) {
      const float2 l = load_shared_pair(lse + uint32_t(i * 32));
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        float& x = s[4 * i + j];
        x = exp2_fast(fmaf(x, unit_, j % 2 == 0 ? -l.x : -l.y));
        if (kMasked && hidden.hides(j, i * 8 + j % 2)) x = 0.0f;
      }
      a[i / 2][i % 2 * 2] = pack_pair<Element>(s[4 * i], s[4 * i + 1]);
      a[i / 2][i % 2 * 2 + 1] = pack_pair<Element>(s[4 * i + 2], s[4 * i + 3]);
    }
  }
  // ds^T as a left operand, and to shared memory.
  template <bool kMasked>
  __device__ void gradients(const QueryStep& step,
                            const BackwardStage<T>& stage,
                            int part,
                            const float (&p)[kScores],
                            const float (&dp)[kScores],
                            uint32_t ds,
                            uint32_t (&a)[kSteps][4]) const {
    const uint32_t delta = stage.stats() + uint32_t((kQueries + part * kRows) * 4 + lane_ % 4 * 8);
    const uint32_t rows = ds + part * kHalfBytes + uint32_t(w_ * kGroupKeys * kRowBytes);
    const Mask hidden = mask(step, part);
#pragma unroll
    for (int i = 0; i < kScores / 4; ++i) {
      const float2 l = load_shared_pair(delta + uint32_t(i * 32));
      float x[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        x[j] = p[4 * i + j] * (dp[4 * i + j] - (j % 2 == 0 ? l.x : l.y));
        if (kMasked && hidden.hides(j, i * 8 + j % 2)) x[j] = 0.0f;
      }
      a[i / 2][i % 2 * 2] = pack_pair<Element>(x[0], x[1]);
      a[i / 2][i % 2 * 2 + 1] = pack_pair<Element>(x[2], x[3]);
      if (i % 2 != 0) store_matrices(matrix_address(rows, i - 1), a[i / 2]);
    }
  }

  // Lane 8 i + j gives the address of row j of matrix i: chunk of columns i / 2, row half i % 2.
  // Rows of 64 elements, swizzled; `chunk` is even.
  __device__ uint32_t matrix_address(uint32_t rows, int chunk) const {
    const int row = thread_ / kWarp * 16 + lane_ / 8 % 2 * 8 + lane_ % 8;
    return rows + uint32_t(row * kRowBytes + ((chunk % 8 + lane_ / 16) ^ (lane_ % 8)) * 16 +
                           chunk / 8 * int(kHalfBytes));
  }
  __device__ void add_query_gradients(const QueryStep& step, const float (&dq)[32]) const {
    int* turn = p_.turns + step.tile * 2 + w_;
    if (p_.deterministic) wait_turn(turn, step.turn);
    float* to =
        p_.dq + int64_t(step.tile) * kQueries * kDim + w_ * (kQueries * kDim / 2) + thread_ * 4;
#pragma unroll
    for (int i = 0; i < 8; ++i)
      add_global(to + i * kGroupThreads * 4, dq[4 * i], dq[4 * i + 1], dq[4 * i + 2],
                 dq[4 * i + 3]);
    if (p_.deterministic) pass_turn(turn);
  }
  // Whoever adds before has been given its item before, and is done or under way.
  __device__ void wait_turn(const int* turn, int mine) const {
    if (thread_ == 0) {
      int now;
      do {
        asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(now) : "l"(turn) : "memory");
      } while (now != mine);
    }
    sync_threads<kGroupThreads>(2 + w_);
  }
  __device__ void pass_turn(int* turn) const {
    __threadfence();
    sync_threads<kGroupThreads>(2 + w_);
    if (thread_ == 0)
      asm volatile("red.release.gpu.global.add.s32 [%0], 1;" ::"l"(turn) : "memory");
  }

  // Part of a split column: [slot][dk or dv][w][4 registers][128 threads][4].
  __device__ void add_sums(int which, const float (&sums)[kSums]) const {
    float* to = p_.slots +
                int64_t((item_.slot * 2 + which) * kConsumers + w_) * (kGroupKeys * kDim) +
                thread_ * 4;
#pragma unroll
    for (int i = 0; i < kSums / 4; ++i)
      add_global(to + i * kGroupThreads * 4, sums[4 * i], sums[4 * i + 1], sums[4 * i + 2],
                 sums[4 * i + 3]);
  }

  // A whole column, by way of the place of this consumer's rows of v, which nobody reads any more.
  __device__ void store_sums(const Rows& rows, const float (&sums)[kSums], float factor) const {
    const uint32_t place = shared_.v + uint32_t(w_ * kGroupKeys * kRowBytes);
    sync_threads<kGroupThreads>(2 + w_);
#pragma unroll
    for (int k = 0; k < kDim / 16; ++k) {
      uint32_t a[4];
#pragma unroll
      for (int i = 0; i < 4; ++i)
        a[i] = pack_pair<Element>(factor * sums[8 * k + 2 * i], factor * sums[8 * k + 2 * i + 1]);
      store_matrices(matrix_address(place, 2 * k), a);
    }
    sync_threads<kGroupThreads>(2 + w_);
    constexpr int kChunks = kDim / 8;  // of a row
    const int keys = item_.keys - w_ * kGroupKeys;
    auto* to = static_cast<Element*>(rows.data) + item_.kv_head() * rows.head_stride;
    for (int i = thread_; i < kGroupKeys * kChunks; i += kGroupThreads) {
      const int row = i / kChunks, chunk = i % kChunks;
      if (row >= keys) break;
      const uint4 v =
          load_shared(place + uint32_t(row * kRowBytes + ((chunk % 8) ^ (row % 8)) * 16 +
                                       chunk / 8 * int(kHalfBytes)));
      const int64_t token = item_.token + w_ * kGroupKeys + row;
      *reinterpret_cast<uint4*>(to + token * rows.token_stride + chunk * 8) = v;
    }
  }

  const BackwardParams& p_;
  const BackwardShared<T>& shared_;
  const Rows &dk_rows_, &dv_rows_;
  const int w_, thread_, lane_;
  const float unit_;
  int steps_ = 0;
  KeyItem item_;
};

}  // namespace longspur::kernels::block_sparse::cuda
