// The map by which the tensor memory accelerator reads x, made on the host for each launch.
#include "kernels/common/cuda/tensor_map.h"
#include "kernels/nvfp4/cuda/wgmma_loop.cuh"

namespace longspur::kernels::nvfp4::cuda {

bool make_map(const MatmulArgs& args, int tokens, CUtensorMap& map) {
  const EncodeTiled encode = encode_tiled();
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
