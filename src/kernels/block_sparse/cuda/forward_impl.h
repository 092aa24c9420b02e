// Private: the ways in which forward() is computed. For .cu files only.
#pragma once

#include <cuda_runtime.h>

#include "kernels/block_sparse/cuda/block_sparse_cuda.h"

namespace longspur::kernels::block_sparse::cuda {

struct ForwardParams;
struct ForwardMaps;

// Tensor cores; 16-bit types. blocks: of the launch.
cudaError_t run_forward_d64(
    Type type, const ForwardParams& p, const ForwardMaps& maps, int blocks, cudaStream_t stream);
cudaError_t run_forward_d128(
    Type type, const ForwardParams& p, const ForwardMaps& maps, int blocks, cudaStream_t stream);

// Plain fp32 arithmetic; every type, D up to kMaxSimpleDim, any strides.
inline constexpr int64_t kMaxSimpleDim = 256;
cudaError_t run_forward_simple(const ForwardArgs& args, cudaStream_t stream);

}  // namespace longspur::kernels::block_sparse::cuda
