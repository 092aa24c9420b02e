// The smallest set of vectors that every compiler lowers: 4 lanes (SSE2, NEON).
#include <bit>
#include <cstring>
#include <limits>
#include <utility>

#include "base/half.h"
#include "base/rng.h"
#include "kernels/nvfp4/codec.h"
#include "kernels/nvfp4/kernels.h"

namespace longspur::kernels::nvfp4 {

namespace {

struct Simd {
  static constexpr int kLanes = 4;
  static constexpr bool kFma = false;
  using F = float __attribute__((vector_size(16)));
  using I = int32_t __attribute__((vector_size(16)));
  static F min(F a, F b) { return a < b ? a : b; }
  static F max(F a, F b) { return a > b ? a : b; }
  static F fma(F a, F b, F c) { return a * b + c; }   // unused: kFma
  static F fnma(F a, F b, F c) { return c - a * b; }  // unused: kFma

  static void widen_halves(const uint16_t* from, float* to) {
    for (int i = 0; i < kBlock; ++i) to[i] = fp16_to_float(from[i]);
  }
  static void narrow_halves(const float* from, uint16_t* to) {
    for (int i = 0; i < kBlock; ++i) to[i] = float_to_fp16(from[i]);
  }
  static void narrow_to_bf16(const float* from, uint16_t* to) {
    for (int i = 0; i < kBlock; ++i) to[i] = float_to_bf16(from[i]);
  }
  static void decode(const uint8_t* codes, float scale, float multiplier, float* out) {
    static constexpr float kValues[] = {0.0f, 0.5f,  1.0f,  1.5f,  2.0f,  3.0f,  4.0f,  6.0f,
                                        0.0f, -0.5f, -1.0f, -1.5f, -2.0f, -3.0f, -4.0f, -6.0f};
    float values[16];
    for (int i = 0; i < 16; ++i) values[i] = kValues[i] * scale * multiplier;
    for (int i = 0; i < kBlock / 2; ++i) {
      out[2 * i] = values[codes[i] & 15];
      out[2 * i + 1] = values[codes[i] >> 4];
    }
  }
};

#include "kernels/nvfp4/cpu/blocks-inl.h"
// clang-format keeps this order: each body needs the one before.
#include "kernels/nvfp4/cpu/quantize-inl.h"
//
#include "kernels/nvfp4/cpu/dequantize-inl.h"

constexpr KernelTable kTable = {"portable", quantize_rows, dequantize_rows, largest};

}  // namespace

const KernelTable* table_portable() { return &kTable; }

}  // namespace longspur::kernels::nvfp4
