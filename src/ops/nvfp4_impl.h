// The implementations of NVFP4's operations, best first; each says what it accepts. Private to
// ops/.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <span>
#include <string_view>

#include "kernels/nvfp4/api.h"
#include "ops/nvfp4_shape.h"

namespace longspur::ops {

// Checked arguments. Results are allocated, contiguous; none of them is empty.
struct Nvfp4QuantizeProblem {
  at::Tensor x;  // [rows, K], or [K, rows] when transposed; rows contiguous
  bool transposed = false;
  int64_t rows = 0, k = 0;
  at::Tensor amax;        // [] or [rows] float32 on x's device, contiguous; undefined: that of x
  bool per_row = false;   // one amax a row, given or not
  at::Tensor importance;  // [K] float32 on x's device, contiguous, or undefined
  kernels::nvfp4::Recipe recipe;
  at::Tensor codes;         // [rows, K / 2] uint8
  at::Tensor scales;        // [rows, K / 16] uint8
  at::Tensor tensor_scale;  // [1] or [rows] float32
};

struct Nvfp4DequantizeProblem {
  at::Tensor codes;         // [rows, K / 2] uint8, contiguous
  at::Tensor scales;        // [rows, K / 16] uint8, contiguous
  at::Tensor tensor_scale;  // [1] or [rows] float32, contiguous
  int64_t rows = 0, k = 0;
  at::Tensor out;  // [rows, K]
};

struct Nvfp4Implementation {
  std::string_view name;
  bool (*accepts_quantize)(const Nvfp4QuantizeProblem&);
  void (*quantize)(const Nvfp4QuantizeProblem&);
  bool (*accepts_dequantize)(const Nvfp4DequantizeProblem&);
  void (*dequantize)(const Nvfp4DequantizeProblem&);
};

extern const Nvfp4Implementation kNvfp4Cpu;    // kernels/nvfp4 on torch's threads
extern const Nvfp4Implementation kNvfp4Torch;  // torch's operations, any device, the same bits

// y = x * W^T + bias. Checked, none of it empty.
struct Nvfp4LinearProblem {
  at::Tensor x;  // [M, K], rows contiguous
  // x quantised, one multiplier a row (W4A4); undefined for W4A16
  at::Tensor x_codes, x_scales, x_tensor_scale;  // [M, K / 2], [M, K / 16] uint8; [M] float32
  at::Tensor codes, scales, tensor_scale;        // [N, K / 2], [N, K / 16] uint8; [1] or [N]
  at::Tensor given_codes, given_scales;          // the caller's own tensors, to know them again
  at::Tensor bias;                               // [N] or undefined
  at::Tensor out;                                // [M, N], contiguous
};
struct Nvfp4LinearImplementation {
  std::string_view name;
  bool (*run)(const Nvfp4LinearProblem&);  // false, and nothing done, where it does not accept
};
extern const Nvfp4LinearImplementation kNvfp4LinearTorch;  // slices of W in fp32 or exact 16 bits
std::span<const Nvfp4LinearImplementation* const> nvfp4_device_linear_implementations();

// Those of this build's devices, before the two above: chosen by the sources that CMake names.
std::span<const Nvfp4Implementation* const> nvfp4_device_implementations();

// Operands as matrices; out is to have their elements.
Nvfp4DequantizeProblem nvfp4_rows(const Nvfp4Operand& operand, const at::Tensor& out);

// The first of the list that accepts; there always is one.
void nvfp4_quantize_rows(const Nvfp4QuantizeProblem& problem);
void nvfp4_dequantize_rows(const Nvfp4DequantizeProblem& problem);

}  // namespace longspur::ops
