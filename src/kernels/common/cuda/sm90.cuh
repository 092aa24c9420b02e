// The Hopper instructions that the families share: asynchronous copies, barriers in shared memory,
// m16n8k16 and m64nNk16 products, and launches with shared memory and clusters.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

namespace longspur::kernels {

__device__ inline uint32_t shared_address(const void* pointer) {
  return uint32_t(__cvta_generic_to_shared(pointer));
}

// 16 bytes to shared memory past L1; zeros when `valid` is false.
__device__ inline void copy_async(uint32_t to, const void* from, bool valid = true) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
               "r"(valid ? 16 : 0)
               : "memory");
}
__device__ inline void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kPending>
__device__ inline void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

__device__ inline uint4 load_shared(uint32_t address) {
  uint4 v;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "r"(address));
  return v;
}
// Four 8 x 8 matrices of 16-bit elements, the rows' addresses from eight lanes each.
__device__ inline uint4 load_matrices(uint32_t address) {
  uint4 v;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "r"(address));
  return v;
}

template <class Element>
__device__ void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
template <>
__device__ inline void mma<__nv_bfloat16>(float (&d)[4],
                                          const uint32_t (&a)[4],
                                          uint32_t b0,
                                          uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
template <>
__device__ inline void mma<__half>(float (&d)[4],
                                   const uint32_t (&a)[4],
                                   uint32_t b0,
                                   uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Barriers in shared memory.
__device__ inline void init_barrier(uint32_t barrier, uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals));
}
__device__ inline void publish_barriers() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
__device__ inline void arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
__device__ inline void expect_bytes(uint32_t barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}
__device__ inline void wait_barrier(uint32_t barrier, uint32_t parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;\n"
      "}" ::"r"(barrier),
      "r"(parity)
      : "memory");
}

// Copies that count on a barrier: plain bytes, and a box of a two-dimensional tensor.
__device__ inline void copy_bulk(uint32_t to, const void* from, uint32_t bytes, uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(to),
      "l"(from), "r"(bytes), "r"(barrier)
      : "memory");
}
__device__ inline void copy_box(
    uint32_t to, const void* map, int column, int row, uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%2, %3}], [%4];" ::"r"(to),
      "l"(map), "r"(column), "r"(row), "r"(barrier)
      : "memory");
}

// Warpgroup products. A comes from registers, which must not change before the group is done.
__device__ inline void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int kPending>
__device__ inline void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// Keeps the compiler from moving reads of sums before the wait above it.
template <int kCount>
__device__ inline void hold_sums(float (&d)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

// Descriptor of a B operand [tokens][64] of 16-bit elements in 128-byte rows, swizzled by 128
// bytes: eight rows are 1,024 bytes. A k-step is 32 bytes further.
__device__ inline uint64_t operand_descriptor(uint32_t address) {
  return uint64_t((address & 0x3ffffu) >> 4) | uint64_t(1) << 16 | uint64_t(1024 >> 4) << 32 |
         uint64_t(1) << 62;
}

// Moves registers between warpgroups; needs a bound on the kernel's blocks.
template <int kRegisters>
__device__ inline void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ inline void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

// d[64][N] (+)= a[64][16] b[N][16]^T. first: the old d counts as zero.
template <class Element, int kN>
struct Wgmma;

#define LONGSPUR_F4(i) "+f"(d[i]), "+f"(d[(i) + 1]), "+f"(d[(i) + 2]), "+f"(d[(i) + 3])
#define LONGSPUR_F16(i) \
  LONGSPUR_F4(i), LONGSPUR_F4((i) + 4), LONGSPUR_F4((i) + 8), LONGSPUR_F4((i) + 12)
#define LONGSPUR_N16 "%0, %1, %2, %3, %4, %5, %6, %7"
#define LONGSPUR_N32 LONGSPUR_N16 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define LONGSPUR_N64 \
  LONGSPUR_N32 ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define LONGSPUR_N128                                                                            \
  LONGSPUR_N64                                                                                   \
  ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, " \
  "%50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
// A, DESC, P: the numbers of the operands after the sums.
#define LONGSPUR_WGMMA(TYPE, PTX, N, SUMS, OPERANDS, A0, A1, A2, A3, DESC, P)                   \
  template <>                                                                                   \
  struct Wgmma<TYPE, N> {                                                                       \
    __device__ static void run(float (&d)[N / 2],                                               \
                               const uint32_t (&a)[4],                                          \
                               uint64_t b,                                                      \
                               bool first) {                                                    \
      asm volatile("{\n.reg .pred add;\nsetp.eq.u32 add, %" P                                   \
                   ", 0;\n"                                                                     \
                   "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." PTX "." PTX " {" SUMS      \
                   "}, "                                                                        \
                   "{%" A0 ", %" A1 ", %" A2 ", %" A3 "}, %" DESC ", add, 1, 1, 0;\n}"          \
                   : OPERANDS                                                                   \
                   : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(uint32_t(first))); \
    }                                                                                           \
  };
#define LONGSPUR_WGMMA_TYPE(TYPE, PTX)                                                           \
  LONGSPUR_WGMMA(TYPE, PTX, 16, LONGSPUR_N16, LONGSPUR_F4(0) LONGSPUR_COMMA LONGSPUR_F4(4), "8", \
                 "9", "10", "11", "12", "13")                                                    \
  LONGSPUR_WGMMA(TYPE, PTX, 64, LONGSPUR_N64, LONGSPUR_F16(0) LONGSPUR_COMMA LONGSPUR_F16(16),   \
                 "32", "33", "34", "35", "36", "37")                                             \
  LONGSPUR_WGMMA(TYPE, PTX, 128, LONGSPUR_N128,                                                  \
                 LONGSPUR_F16(0) LONGSPUR_COMMA LONGSPUR_F16(16) LONGSPUR_COMMA LONGSPUR_F16(32) \
                     LONGSPUR_COMMA LONGSPUR_F16(48),                                            \
                 "64", "65", "66", "67", "68", "69")
#define LONGSPUR_COMMA ,
LONGSPUR_WGMMA_TYPE(__nv_bfloat16, "bf16")
LONGSPUR_WGMMA_TYPE(__half, "f16")
#undef LONGSPUR_COMMA
#undef LONGSPUR_WGMMA_TYPE
#undef LONGSPUR_WGMMA
#undef LONGSPUR_N128
#undef LONGSPUR_N64
#undef LONGSPUR_N32
#undef LONGSPUR_N16
#undef LONGSPUR_F16
#undef LONGSPUR_F4

// launch_overlapped() with dynamic shared memory and, along z, a cluster.
template <class... Parameters, class... Arguments>
cudaError_t launch_shared(void (*kernel)(Parameters...),
                          dim3 grid,
                          unsigned threads,
                          unsigned cluster_z,
                          size_t shared,
                          cudaStream_t stream,
                          const Arguments&... arguments) {
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared));
  if (error != cudaSuccess) return error;
  cudaLaunchAttribute attributes[2]{};
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim.x = attributes[1].val.clusterDim.y = 1;
  attributes[1].val.clusterDim.z = cluster_z;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared;
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = cluster_z > 1 ? 2 : 1;
  return cudaLaunchKernelEx(&config, kernel, arguments...);
}

}  // namespace longspur::kernels
