#include "kernels/nvfp4/cuda/matmul.h"

#include <cuda_runtime.h>

#include "kernels/nvfp4/codec.h"
#include "kernels/nvfp4/cuda/matmul_impl.h"

namespace longspur::kernels::nvfp4::cuda {

namespace {

constexpr const Implementation* kImplementations[] = {&kFewTokens, &kManyTokens,
                                                      &kCanonicalFewTokens, &kSimple};

bool decodes_x(const MatmulArgs& args) { return args.x_codes != nullptr; }

// The product that is left once an NVFP4 x has been decoded to bf16.
MatmulArgs with_decoded_x(MatmulArgs args) {
  if (!decodes_x(args)) return args;
  args.x = args.workspace;
  args.x_type = Type::kBF16;
  return args;
}

const Implementation* choose(const MatmulArgs& args) {
  for (const Implementation* implementation : kImplementations) {
    if (implementation->accepts(args)) return implementation;
  }
  return nullptr;
}

}  // namespace

int multiprocessors() {
  int device = 0, count = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device);
  return count;
}

bool matmul_accepts(int64_t m, int64_t n, int64_t k) {
  return m >= 1 && n >= 1 && k >= kBlock && k % kBlock == 0;
}

int64_t matmul_workspace_bytes(const MatmulArgs& args) {
  return decodes_x(args) ? args.m * args.w.k * 2 : 0;
}

const char* matmul_choice(const MatmulArgs& args) {
  const Implementation* implementation = choose(with_decoded_x(args));
  return implementation != nullptr ? implementation->name : "none";
}

CudaStatus matmul(const MatmulArgs& args, void* stream) {
  if (!matmul_accepts(args.m, args.w.n, args.w.k))
    return "nvfp4 matmul: M and N must be at least 1, K a positive multiple of 16";
  const MatmulArgs product = with_decoded_x(args);
  const Implementation* implementation = choose(product);
  if (implementation == nullptr) return "nvfp4 matmul: no implementation takes these weights";
  if (decodes_x(args)) {
    const CudaStatus status =
        decode_rows(args.x_codes, args.x_scales, args.m, args.w.k, args.workspace, stream);
    if (status != nullptr) return status;
  }
  return implementation->run(product, stream);
}

}  // namespace longspur::kernels::nvfp4::cuda
