// Activations of W4A4 products: fp32 rows become NVFP4 and then the tiles of params.h.
#pragma once

#include <cstdint>

#include "kernels/nvfp4/api.h"
#include "kernels/qgemm/params.h"

namespace longspur::kernels::qgemm {

// Scratch of T tokens; a token's parts are written by one thread.
struct Nvfp4Input {
  std::byte* tiles;   // what products read
  float* multiplier;  // [T]
  float* rows;        // [T, K] at stride `stride`, the transformed input
  float* amax;        // [T]
  uint8_t* codes;     // [T, K / 2]
  uint8_t* scales;    // [T, K / 16]
  int64_t t, k, stride;
};

// stride: of rows, in elements. base: aligned to 64.
int64_t nvfp4_input_bytes(int64_t t, int64_t k, int64_t stride);
Nvfp4Input nvfp4_input(std::byte* base, int64_t t, int64_t k, int64_t stride);

// Rows [begin, end) to tiles. Any division of the rows gives the same.
void encode_nvfp4(const Nvfp4Input& input, nvfp4::Rule rule, int64_t begin, int64_t end);

}  // namespace longspur::kernels::qgemm
