// The map by which the tensor memory accelerator reads x, made on the host for each launch.
#include <cuda_runtime.h>

#include "kernels/nvfp4/cuda/wgmma_loop.cuh"

namespace longspur::kernels::nvfp4::cuda {

namespace {

using EncodeTiled = CUresult (*)(CUtensorMap*,
                                 CUtensorMapDataType,
                                 cuuint32_t,
                                 void*,
                                 const cuuint64_t*,
                                 const cuuint64_t*,
                                 const cuuint32_t*,
                                 const cuuint32_t*,
                                 CUtensorMapInterleave,
                                 CUtensorMapSwizzle,
                                 CUtensorMapL2promotion,
                                 CUtensorMapFloatOOBfill);

// From the driver, without linking to it: machines without one build and load this library.
EncodeTiled encode_tiled() {
  void* entry = nullptr;
  cudaDriverEntryPointQueryResult found{};
  if (cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000, cudaEnableDefault,
                                       &found) != cudaSuccess ||
      found != cudaDriverEntryPointSuccess)
    return nullptr;
  return reinterpret_cast<EncodeTiled>(entry);
}

}  // namespace

bool make_map(const MatmulArgs& args, int tokens, CUtensorMap& map) {
  static const EncodeTiled encode = encode_tiled();
  const cuuint64_t sizes[] = {cuuint64_t(args.w.k), cuuint64_t(args.m)};
  const cuuint64_t strides[] = {cuuint64_t(args.w.k) * 2};
  const cuuint32_t box[] = {kHalf, cuuint32_t(tokens)};
  const cuuint32_t steps[] = {1, 1};
  const auto type = args.x_type == Type::kBF16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16
                                               : CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
  return encode != nullptr && encode(&map, type, 2, const_cast<void*>(args.x), sizes, strides, box,
                                     steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
                                     CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                                     CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

}  // namespace longspur::kernels::nvfp4::cuda
