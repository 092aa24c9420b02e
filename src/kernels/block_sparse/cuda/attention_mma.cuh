// The warpgroup products of attention, and the shared tiles they read.
//
// A tile of R rows and D columns of 16-bit elements lies as [D / 64][R][64]: rows of 128 bytes,
// swizzled by 128 bytes (16-byte chunk c of row r is at chunk c ^ (r & 7)), from a multiple of
// 1,024 bytes on. One box of the tensor memory accelerator fills it.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/common/cuda/sm90.cuh"

namespace longspur::kernels::block_sparse::cuda {

inline constexpr int kRowBytes = 128;  // of a tile's row of 64 elements

// Descriptors have a constant upper half: eight rows are 1,024 bytes, the swizzle is by 128 bytes.
__device__ inline uint64_t descriptor(uint32_t low) {
  return uint64_t(0x40000040u) << 32 | uint64_t(low);
}
// Of rows whose columns are summed over. A shared address may carry the block's rank in a cluster
// in its upper bits, which must not get into the field beside it.
__device__ inline uint32_t rows_descriptor(uint32_t address) {
  return (address & 0x3ffffu) >> 4 | 1u << 16;
}
// Of rows that are summed over, read by columns; kRows of the tile.
template <int kRows>
__device__ inline uint32_t columns_descriptor(uint32_t address) {
  return (address & 0x3ffffu) >> 4 | uint32_t(kRows * kRowBytes / 16) << 16;
}
// What the 16 columns of step k are further on, in a descriptor's units.
template <int kRows>
constexpr uint32_t column_step(int k) {
  return uint32_t(k / 4 * (kRows * kRowBytes / 16) + k % 4 * 2);
}
// And 16 rows.
inline constexpr uint32_t kRowStep = 16 * kRowBytes / 16;

// d[64][kN] (+)= a[64][16] b[kN][16]^T, both in shared memory. first: the old d counts as zero.
template <class Element, int kN>
struct SharedProduct;
// d[64][kN] += a[64][16] b[16][kN], a in registers, which must not change before the product is
// done.
template <class Element, int kN>
struct ColumnsProduct;

#define LONGSPUR_F4(i) "+f"(d[i]), "+f"(d[(i) + 1]), "+f"(d[(i) + 2]), "+f"(d[(i) + 3])
#define LONGSPUR_F16(i) \
  LONGSPUR_F4(i), LONGSPUR_F4((i) + 4), LONGSPUR_F4((i) + 8), LONGSPUR_F4((i) + 12)
#define LONGSPUR_F32(i) LONGSPUR_F16(i), LONGSPUR_F16((i) + 16)
#define LONGSPUR_F64(i) LONGSPUR_F32(i), LONGSPUR_F32((i) + 32)
#define LONGSPUR_N64                                                                           \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, " \
  "%20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define LONGSPUR_N128                                                                            \
  LONGSPUR_N64                                                                                   \
  ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, " \
  "%50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
// A, B, P and A0 ..: the numbers of the operands after the sums.
#define LONGSPUR_SHARED_PRODUCT(TYPE, PTX, N, SUMS, OPERANDS, A, B, P)                     \
  template <>                                                                              \
  struct SharedProduct<TYPE, N> {                                                          \
    __device__ static void run(float (&d)[N / 2], uint64_t a, uint64_t b, bool first) {    \
      asm volatile("{\n.reg .pred add;\nsetp.eq.u32 add, %" P                              \
                   ", 0;\n"                                                                \
                   "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." PTX "." PTX " {" SUMS \
                   "}, %" A ", %" B ", add, 1, 1, 0, 0;\n}"                                \
                   : OPERANDS                                                              \
                   : "l"(a), "l"(b), "r"(uint32_t(first)));                                \
    }                                                                                      \
  };
#define LONGSPUR_COLUMNS_PRODUCT(TYPE, PTX, N, SUMS, OPERANDS, A0, A1, A2, A3, B)            \
  template <>                                                                                \
  struct ColumnsProduct<TYPE, N> {                                                           \
    __device__ static void run(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b) {      \
      asm volatile(                                                                          \
          "{\n.reg .pred add;\nsetp.eq.u32 add, 0, 0;\n"                                     \
          "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." PTX "." PTX " {" SUMS "}, {%" A0 \
          ", %" A1 ", %" A2 ", %" A3 "}, %" B ", add, 1, 1, 1;\n}"                           \
          : OPERANDS                                                                         \
          : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                             \
    }                                                                                        \
  };
#define LONGSPUR_PRODUCTS(TYPE, PTX)                                                               \
  LONGSPUR_SHARED_PRODUCT(TYPE, PTX, 64, LONGSPUR_N64, LONGSPUR_F32(0), "32", "33", "34")          \
  LONGSPUR_SHARED_PRODUCT(TYPE, PTX, 128, LONGSPUR_N128, LONGSPUR_F64(0), "64", "65", "66")        \
  LONGSPUR_COLUMNS_PRODUCT(TYPE, PTX, 64, LONGSPUR_N64, LONGSPUR_F32(0), "32", "33", "34", "35",   \
                           "36")                                                                   \
  LONGSPUR_COLUMNS_PRODUCT(TYPE, PTX, 128, LONGSPUR_N128, LONGSPUR_F64(0), "64", "65", "66", "67", \
                           "68")
LONGSPUR_PRODUCTS(__nv_bfloat16, "bf16")
LONGSPUR_PRODUCTS(__half, "f16")
#undef LONGSPUR_PRODUCTS
#undef LONGSPUR_COLUMNS_PRODUCT
#undef LONGSPUR_SHARED_PRODUCT
#undef LONGSPUR_N128
#undef LONGSPUR_N64
#undef LONGSPUR_F64
#undef LONGSPUR_F32
#undef LONGSPUR_F16
#undef LONGSPUR_F4

// A box of a four-dimensional tensor (column, token, column half, head); counts on a barrier.
__device__ inline void copy_tile(
    uint32_t to, const void* map, int token, int half, int head, uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%2, %3, %4, %5}], [%6];" ::"r"(to),
      "l"(map), "r"(0), "r"(token), "r"(half), "r"(head), "r"(barrier)
      : "memory");
}

// The same for what is read once: it leaves L2 first.
__device__ inline void copy_tile_once(
    uint32_t to, const void* map, int token, int half, int head, uint32_t barrier) {
  constexpr uint64_t kEvictFirst = 0x12f0000000000000;
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
      ".L2::cache_hint [%0], [%1, {%2, %3, %4, %5}], [%6], %7;" ::"r"(to),
      "l"(map), "r"(0), "r"(token), "r"(half), "r"(head), "r"(barrier), "l"(kEvictFirst)
      : "memory");
}
template <class Element>
__device__ uint32_t pack_pair(float low, float high);
template <>
__device__ inline uint32_t pack_pair<__nv_bfloat16>(float low, float high) {
  const __nv_bfloat162 v = __floats2bfloat162_rn(low, high);
  return reinterpret_cast<const uint32_t&>(v);
}
template <>
__device__ inline uint32_t pack_pair<__half>(float low, float high) {
  const __half2 v = __floats2half2_rn(low, high);
  return reinterpret_cast<const uint32_t&>(v);
}

__device__ inline float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

}  // namespace longspur::kernels::block_sparse::cuda
