// The implementations behind matmul(), in the order in which they are asked; the first that accepts
// takes the product. x is never NVFP4 here: matmul() decodes it to exact bf16 first.
#pragma once

#include "kernels/nvfp4/cuda/matmul.h"

namespace longspur::kernels::nvfp4::cuda {

struct Implementation {
  const char* name;
  bool (*accepts)(const MatmulArgs& args);
  CudaStatus (*run)(const MatmulArgs& args, void* stream);
};

// At most 8 tokens (16 where N is small), packed weights: mma.sync, one read of W.
extern const Implementation kFewTokens;
// Any number of tokens, packed weights: wgmma, W decoded into its register operand.
extern const Implementation kManyTokens;
// At most 16 tokens, canonical weights.
extern const Implementation kCanonicalFewTokens;
// A warp an output, fp32 sums: any type, any K that is a multiple of 16. The reference.
extern const Implementation kSimple;

// NVFP4 rows to q * s in bf16, exact, without the multiplier. [rows, K]
CudaStatus decode_rows(
    const uint8_t* codes, const uint8_t* scales, int64_t rows, int64_t k, void* out, void* stream);

// Multiprocessors of the present device.
int multiprocessors();

}  // namespace longspur::kernels::nvfp4::cuda
