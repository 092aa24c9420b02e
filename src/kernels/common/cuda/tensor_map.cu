#include "kernels/common/cuda/tensor_map.h"

#include <cuda_runtime.h>

namespace longspur::kernels {

namespace {

EncodeTiled find_encode_tiled() {
  void* entry = nullptr;
  cudaDriverEntryPointQueryResult found{};
  if (cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000, cudaEnableDefault,
                                       &found) != cudaSuccess ||
      found != cudaDriverEntryPointSuccess)
    return nullptr;
  return reinterpret_cast<EncodeTiled>(entry);
}

}  // namespace

EncodeTiled encode_tiled() {
  static const EncodeTiled encode = find_encode_tiled();
  return encode;
}

}  // namespace longspur::kernels
