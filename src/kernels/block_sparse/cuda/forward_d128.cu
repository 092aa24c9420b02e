// The fast forward kernel for heads of 128.
#include "kernels/block_sparse/cuda/forward_impl.h"
#include "kernels/block_sparse/cuda/forward_kernel.cuh"

namespace longspur::kernels::block_sparse::cuda {

cudaError_t run_forward_d128(
    Type type, const ForwardParams& p, const ForwardMaps& maps, int blocks, cudaStream_t stream) {
  return type == Type::kBF16 ? launch_forward<__nv_bfloat16, 128>(p, maps, blocks, stream)
                             : launch_forward<__half, 128>(p, maps, blocks, stream);
}

}  // namespace longspur::kernels::block_sparse::cuda
