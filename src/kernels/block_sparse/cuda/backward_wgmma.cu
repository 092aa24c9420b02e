// The main kernel of the backward: a thread block stays on its multiprocessor and takes one block
// of 128 keys of a KV head after the other; one warp copies, two warpgroups compute.
#include <algorithm>

#include "kernels/block_sparse/cuda/backward_consume.cuh"
#include "kernels/block_sparse/cuda/backward_produce.cuh"
#include "kernels/common/cuda/status.cuh"
#include "kernels/common/cuda/tensor_map.h"

namespace longspur::kernels::block_sparse::cuda {

namespace {

template <class T>
__global__ void __launch_bounds__(kBlockThreads, 1)
    block_sparse_backward_sm90(const __grid_constant__ BackwardMaps maps,
                               const __grid_constant__ BackwardParams p,
                               const __grid_constant__ Rows dk,
                               const __grid_constant__ Rows dv) {
  extern __shared__ uint8_t memory[];
  const BackwardShared<T> shared(shared_address(memory));
  if (threadIdx.x == 0) shared.init();
  __syncthreads();
  if (threadIdx.x >= kConsumerThreads) {
    give_registers<24>();
    if (threadIdx.x < kConsumerThreads + kWarp) QueryProducer<T>(p, maps, shared).run();
  } else {
    take_registers<240>();
    KeyConsumer<T>(p, shared, dk, dv).run();
  }
}

// Boxes of `rows` tokens of one head: (column of 64, token, column half, head).
bool make_map(
    const ConstRows& x, const Shape& s, int64_t tokens, int64_t heads, int rows, CUtensorMap& map) {
  const EncodeTiled encode = encode_tiled();
  const cuuint32_t halves = cuuint32_t(s.head_dim / 64);
  const cuuint64_t sizes[] = {64, cuuint64_t(tokens), halves, cuuint64_t(heads)};
  // Strides of a single token or head may be anything, and are not used.
  const auto bytes = [&](int64_t stride, int64_t size) {
    return cuuint64_t(size == 1 ? s.head_dim : stride) * 2;
  };
  const cuuint64_t strides[] = {bytes(x.token_stride, tokens), kRowBytes,
                                bytes(x.head_stride, heads)};
  const cuuint32_t box[] = {64, cuuint32_t(rows), halves, 1};
  const cuuint32_t steps[] = {1, 1, 1, 1};
  const auto type =
      s.type == Type::kBF16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
  return encode(&map, type, 4, const_cast<void*>(x.data), sizes, strides, box, steps,
                CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

template <class T>
CudaStatus launch(const BackwardArgs& args, const BackwardParams& p, cudaStream_t stream) {
  const Shape& s = args.shape;
  BackwardMaps maps;
  if (!make_map(args.q, s, s.total_q, s.heads, T::kQueries, maps.q) ||
      !make_map(args.grad_out, s, s.total_q, s.heads, T::kQueries, maps.grad_out) ||
      !make_map(args.k, s, s.total_k, s.kv_heads, kKeys, maps.k) ||
      !make_map(args.v, s, s.total_k, s.kv_heads, kKeys, maps.v))
    return "block-sparse backward: the driver refuses the tensor maps";
  int device = 0, processors = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  const auto kernel = block_sparse_backward_sm90<T>;
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, T::kBytes);
  const int64_t items = int64_t(p.kv_heads) * p.key_blocks + (p.max_slots > 0 ? kWorkParts : 0);
  const unsigned blocks = unsigned(std::min<int64_t>(items, processors));
  kernel<<<blocks, kBlockThreads, T::kBytes, stream>>>(maps, p, args.dk, args.dv);
  return launch_status();
}

}  // namespace

CudaStatus accumulate(const BackwardArgs& args, const BackwardParams& p, cudaStream_t stream) {
  const bool wide = args.shape.head_dim == 128;
  if (args.shape.type == Type::kBF16) {
    return wide ? launch<BackwardTile<__nv_bfloat16, 128>>(args, p, stream)
                : launch<BackwardTile<__nv_bfloat16, 64>>(args, p, stream);
  }
  return wide ? launch<BackwardTile<__half, 128>>(args, p, stream)
              : launch<BackwardTile<__half, 64>>(args, p, stream);
}

}  // namespace longspur::kernels::block_sparse::cuda
