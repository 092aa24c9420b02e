// The inner loops of the matrix methods: sixteen rows of W at a time, one a SIMD lane. Plain
// pointers; one table of functions for each instruction set, all of which give the same bits.
#pragma once

#include <cstdint>

#include "kernels/nvfp4/api.h"
#include "kernels/nvfp4/codec.h"

namespace longspur::quant {

inline constexpr int kLanes = 16;
inline constexpr int64_t kBlock = kernels::nvfp4::kBlock;

// What one amax fixes (kernels/nvfp4/api.h).
struct TensorScale {
  float amax, top, enc, dec, multiplier;
};

// Block scales that a rule lets compete, by their index: the rule's own plain one first.
int candidate_count(kernels::nvfp4::Rule rule);
// Of a block with largest magnitude bmax.
uint8_t candidate_code(kernels::nvfp4::Rule rule, int index, float bmax, float enc);

struct GptqArgs {
  int64_t k = 0;
  TensorScale scale{};
  kernels::nvfp4::Rule rule{};
  kernels::nvfp4::Metric metric{};
  bool simulated = true;
  const float* factor = nullptr;      // [K, K] U, in the order of the columns' rounding
  const float* importance = nullptr;  // [K] or null: at the group's start
  const int32_t* order = nullptr;  // [K]: the column that is rounded at each step; null: in order
  float* w = nullptr;              // [K, lanes] in rounding order; overwritten
  float* levels = nullptr;         // [K, lanes] out, by column: E2M1 values
  uint8_t* scales = nullptr;       // [K / 16, lanes] out; in when order is given
};

// GPTQ that keeps `beam` versions of each row (a power of two, at most the lanes), side by side in
// as many lanes; the best of a row ends in its first.
struct BeamArgs {
  GptqArgs gptq;  // no order
  int beam = 1;
  uint8_t* parents = nullptr;  // [K / 16, lanes] scratch: the lane each version came from
};

struct RefineArgs {
  int64_t k = 0;
  TensorScale scale{};
  int sweeps = 1;
  const float* gram = nullptr;  // [K, K], positive on the diagonal
  const float* w = nullptr;     // [K, lanes]
  float* levels = nullptr;      // [K, lanes] in and out
  uint8_t* scales = nullptr;    // [K / 16, lanes] in and out
  float* gradient = nullptr;    // [K, lanes] scratch: (Q - W) H
};

struct LaneKernels {
  const char* name;
  void (*gptq)(const GptqArgs& args);
  void (*gptq_beam)(const BeamArgs& args);
  void (*refine)(const RefineArgs& args);
  // out[j] += sum over i < k of in[i] * m[i, j], j < columns, k a multiple of 16. in: [K, lanes];
  // out: [columns, lanes]
  void (*multiply)(float* out, const float* in, const float* m, int64_t k, int64_t columns);
  // c[i] -= sum over t < depth of a[t] * b[t * ldb + i], i < n.
  void (*subtract_rows)(
      double* c, const double* a, const double* b, int64_t ldb, int64_t depth, int64_t n);
};

extern const LaneKernels kLanesPlain;
#if defined(__x86_64__)
extern const LaneKernels kLanesAvx2, kLanesAvx512;
#endif

// The widest that this machine runs.
const LaneKernels& lane_kernels();

}  // namespace longspur::quant
