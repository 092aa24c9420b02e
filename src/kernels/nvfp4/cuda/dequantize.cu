// Codes and scales back to numbers: a thread a block of 16. Bound by memory: 0.5625 bytes read and
// 2 or 4 written an element.
#include "kernels/common/cuda/launch.cuh"
#include "kernels/common/cuda/status.cuh"
#include "kernels/nvfp4/cuda/exact.cuh"
#include "kernels/nvfp4/cuda/quantize.h"

namespace longspur::kernels::nvfp4::cuda {

namespace {

constexpr int kThreads = 256;

__device__ void narrow(float x, float& to) { to = x; }
__device__ void narrow(float x, __nv_bfloat16& to) { to = __float2bfloat16_rn(x); }
__device__ void narrow(float x, __half& to) { to = __float2half_rn(x); }

template <class T>
__global__ void __launch_bounds__(kThreads) dequantize_kernel(DequantizeArgs args, bool swizzled) {
  const int64_t columns = args.k / kBlock;
  const int64_t block = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (block >= args.rows * columns) return;
  const int64_t row = block / columns;
  const int64_t at = swizzled ? swizzled_scale_offset(row, block % columns, columns) : block;
  const float scale = e4m3_decode(args.scales[at] & 0x7fu);
  const float multiplier = args.multiplier[args.multiplier_per_row ? row : 0];
  const uint2 codes = reinterpret_cast<const uint2*>(args.codes)[block];
  T* out = static_cast<T*>(args.out) + block * kBlock;
#pragma unroll
  for (int i = 0; i < kBlock; i += Vec<T>::kSize) {
    Vec<T> v;
#pragma unroll
    for (int j = 0; j < Vec<T>::kSize; ++j) {
      const uint32_t word = i + j < 8 ? codes.x : codes.y;
      const float q = e2m1_decode(word >> (i + j) % 8 * 4 & 15u);
      narrow(__fmul_rn(q * scale, multiplier), v.data[j]);
    }
    *reinterpret_cast<Vec<T>*>(out + i) = v;
  }
}

}  // namespace

CudaStatus dequantize(const DequantizeArgs& args, bool swizzled, void* stream) {
  if (args.k % kBlock != 0) return "nvfp4 dequantize: K is no multiple of 16";
  if (reinterpret_cast<uintptr_t>(args.codes) % 8 != 0)
    return "nvfp4 dequantize: codes not aligned to 8";
  if (reinterpret_cast<uintptr_t>(args.out) % 16 != 0)
    return "nvfp4 dequantize: out not aligned to 16";
  const int64_t blocks = args.rows * (args.k / kBlock);
  if (blocks == 0) return nullptr;
  const auto grid = unsigned((blocks + kThreads - 1) / kThreads);
  auto* on = static_cast<cudaStream_t>(stream);
  switch (args.dtype) {
    case DType::kF32:
      dequantize_kernel<float><<<grid, kThreads, 0, on>>>(args, swizzled);
      break;
    case DType::kBF16:
      dequantize_kernel<__nv_bfloat16><<<grid, kThreads, 0, on>>>(args, swizzled);
      break;
    case DType::kF16:
      dequantize_kernel<__half><<<grid, kThreads, 0, on>>>(args, swizzled);
      break;
    default:
      return "nvfp4 dequantize: out is neither F32, BF16 nor F16";
  }
  return launch_status();
}

}  // namespace longspur::kernels::nvfp4::cuda
