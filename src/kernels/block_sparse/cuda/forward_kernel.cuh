// The fast forward kernel: one copying warp and two computing warpgroups a multiprocessor, which
// stay and take items until there are none. Included by one .cu file for each head size.
#pragma once

#include <algorithm>

#include "kernels/block_sparse/cuda/forward_consumer.cuh"
#include "kernels/block_sparse/cuda/forward_producer.cuh"

namespace longspur::kernels::block_sparse::cuda {

template <class Element, int kD>
__global__ void __launch_bounds__(kThreads, 1)
    forward_sm90(const __grid_constant__ ForwardParams p,
                 const __grid_constant__ ForwardMaps maps) {
  using S = ForwardShape<kD>;
  extern __shared__ uint8_t memory[];
  const ForwardShared<S> shared{(shared_address(memory) + 1023u) / 1024u * 1024u};
  if (threadIdx.x == 0) shared.init();
  __syncthreads();
  const int group = __shfl_sync(~0u, int(threadIdx.x) / kGroupThreads, 0);
  if (group == 0) {
    give_registers<88>();
    if (threadIdx.x < kWarp) Producer<S>(p, maps, shared).run();
  } else {
    take_registers<208>();
    Consumer<Element, S>(p, shared, group - 1).run();
  }
}

template <class Element, int kD>
cudaError_t launch_forward(const ForwardParams& p,
                           const ForwardMaps& maps,
                           int blocks,
                           cudaStream_t stream) {
  constexpr int kBytes = int(ForwardShape<kD>::kBytes);
  auto* kernel = forward_sm90<Element, kD>;
  cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
  if (error == cudaSuccess) error = cudaMemsetAsync(p.ticket, 0, sizeof(int), stream);
  if (error != cudaSuccess) return error;
  kernel<<<unsigned(blocks), kThreads, kBytes, stream>>>(p, maps);
  return cudaGetLastError();
}

}  // namespace longspur::kernels::block_sparse::cuda
