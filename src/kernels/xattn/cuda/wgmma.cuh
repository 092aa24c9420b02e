// Warpgroup products with both operands in shared memory, and copies of boxes of tensors of three
// and four dimensions.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "kernels/common/cuda/sm90.cuh"

namespace longspur::kernels::xattn::cuda {

// d[64][N] (+)= a[64][16] b[N][16]^T, descriptors of both; first: the old d counts as zero.
template <class Element, int kN>
struct SharedWgmma;

#define LONGSPUR_F4(i) "+f"(d[i]), "+f"(d[(i) + 1]), "+f"(d[(i) + 2]), "+f"(d[(i) + 3])
#define LONGSPUR_F16(i) \
  LONGSPUR_F4(i), LONGSPUR_F4((i) + 4), LONGSPUR_F4((i) + 8), LONGSPUR_F4((i) + 12)
#define LONGSPUR_F64(i) \
  LONGSPUR_F16(i), LONGSPUR_F16((i) + 16), LONGSPUR_F16((i) + 32), LONGSPUR_F16((i) + 48)
#define LONGSPUR_N128                                                                          \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, " \
  "%20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, " \
  "%38, "                                                                                      \
  "%39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, " \
  "%57, "                                                                                      \
  "%58, %59, %60, %61, %62, %63"
#define LONGSPUR_N256                                                                            \
  LONGSPUR_N128                                                                                  \
  ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, " \
  "%82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, %96, %97, %98, %99, "   \
  "%100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, %112, %113, %114, "   \
  "%115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
// A, B, P: the numbers of the operands after the sums.
#define LONGSPUR_SHARED_WGMMA(TYPE, PTX, N, SUMS, A, B, P, ...)                            \
  template <>                                                                              \
  struct SharedWgmma<TYPE, N> {                                                            \
    __device__ static void run(float (&d)[N / 2], uint64_t a, uint64_t b, bool first) {    \
      asm volatile("{\n.reg .pred add;\nsetp.eq.u32 add, %" P                              \
                   ", 0;\n"                                                                \
                   "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." PTX "." PTX " {" SUMS \
                   "}, %" A ", %" B ", add, 1, 1, 0, 0;\n}"                                \
                   : __VA_ARGS__                                                           \
                   : "l"(a), "l"(b), "r"(uint32_t(first)));                                \
    }                                                                                      \
  };
LONGSPUR_SHARED_WGMMA(__nv_bfloat16, "bf16", 128, LONGSPUR_N128, "64", "65", "66", LONGSPUR_F64(0))
LONGSPUR_SHARED_WGMMA(__half, "f16", 128, LONGSPUR_N128, "64", "65", "66", LONGSPUR_F64(0))
LONGSPUR_SHARED_WGMMA(__nv_bfloat16,
                      "bf16",
                      256,
                      LONGSPUR_N256,
                      "128",
                      "129",
                      "130",
                      LONGSPUR_F64(0),
                      LONGSPUR_F64(64))
LONGSPUR_SHARED_WGMMA(
    __half, "f16", 256, LONGSPUR_N256, "128", "129", "130", LONGSPUR_F64(0), LONGSPUR_F64(64))
#undef LONGSPUR_SHARED_WGMMA
#undef LONGSPUR_N256
#undef LONGSPUR_N128
#undef LONGSPUR_F64
#undef LONGSPUR_F16
#undef LONGSPUR_F4

__device__ inline void copy_box3(
    uint32_t to, const void* map, int column, int row, int head, uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%2, %3, %4}], [%5];" ::"r"(to),
      "l"(map), "r"(column), "r"(row), "r"(head), "r"(barrier)
      : "memory");
}
__device__ inline void copy_box4(
    uint32_t to, const void* map, int column, int token, int row, int head, uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%2, %3, %4, %5}], [%6];" ::"r"(to),
      "l"(map), "r"(column), "r"(token), "r"(row), "r"(head), "r"(barrier)
      : "memory");
}

}  // namespace longspur::kernels::xattn::cuda
