// Products of activations with stored weights, y[T, N] = x[T, K] * W[N, K]^T, W in the type it is
// stored in. CPU: rows are interleaved once at load for the machine's vector width, so
// matrix-vector (decode) streams memory once and matrix-matrix (prefill) reuses unpacked weights
// across tokens.
//
// Arithmetic. F32, F16, BF16: weights as fp32, fp32 activations and accumulation. Q8_0, Q4_0, Q4_1,
// NVFP4: activations are quantised per block of 32 along K (see ActPrecision), exact integer dot
// products (NVFP4: of 16 elements), fp32 scales and accumulation. A row of y does not depend on T,
// on the other rows or on the number of threads. A row of x with a NaN or an infinity gives a row
// of y without finite values.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string_view>

#include "base/aligned_buffer.h"
#include "base/dtype.h"
#include "base/thread_pool.h"
#include "kernels/nvfp4/api.h"

namespace longspur::kernels::qgemm {

// Rows of one stored matrix: N rows of K elements in `dtype`'s row-major block layout.
struct WeightRows {
  DType dtype;
  const std::byte* data;
  int64_t n;
  int64_t k;
  float scale = 1.0f;  // multiplies every value; other than 1 for NVFP4 only
};

// A weight matrix in the machine's own layout. Immutable, shared by all threads.
class PackedWeight {
 public:
  virtual ~PackedWeight() = default;
  virtual DType dtype() const = 0;
  virtual int64_t n() const = 0;
  virtual int64_t k() const = 0;
  virtual int64_t bytes() const = 0;
  // Row `row` as fp32, for embedding look-up. out: [K]
  virtual void dequantize_row(int64_t row, float* out) const = 0;
};

// True for F32, BF16, F16, Q8_0, Q4_0, Q4_1, NVFP4 with K a multiple of the type's block.
bool supports(DType dtype, int64_t k);

// Bytes of a packed matrix, apart from rows that fill the last group of 16.
int64_t packed_bytes(DType dtype, int64_t n, int64_t k);

// Packs matrices stacked along N (q, k and v in one product); all must share dtype and k, but each
// has its own scale. Of NVFP4's scale bytes the sign bit is ignored; 0x7f, which is no number, is
// refused.
std::unique_ptr<PackedWeight> pack(std::span<const WeightRows> parts, ThreadPool& pool);

// What is done to x on its way in (each fused with the quantisation of x).
enum class Input {
  kPlain,    // x: [T, K]
  kRmsNorm,  // x: [T, K], normalised: x / sqrt(mean(x^2) + eps) * norm_weight[K]
  kSwiGlu,   // x: [T, 2K], gate first: silu(x[:, :K]) * x[:, K:]
};

// Codes of quantised activations, for each block of 32. Ignored by F32, F16 and BF16 weights.
//   kInt8Peak  8 bits, but for the four neighbours (k = 4j .. 4j + 3) with the largest magnitude,
//              which get 15: the scale is that of the other 28, so that one outlier, which is what
//              ruins plain 8-bit codes, costs one dot product more instead of everyone's precision.
//   kInt15     15 bits for all (scale max|x| / 16256), for twice the dot products.
//   kNvfp4     for NVFP4 weights (others: as kInt8Peak): NVFP4 with a multiplier a row, exactly the
//              codes of nvfp4::quantize for the fp32 row, by act_rule. The sum of 16 products and
//              its two scales are multiplied without rounding.
// Mean KL from fp32 activations, SmolLM2-135M Q4_1: 2.9e-3 nats with plain 8 bits, 3.4e-4 with
// kInt8Peak, 2.1e-7 with kInt15.
enum class ActPrecision { kInt8Peak, kInt15, kNvfp4 };

struct MatmulArgs {
  const float* x = nullptr;  // rows at stride ldx
  int64_t t = 0;             // T >= 1
  int64_t ldx = 0;
  Input input = Input::kPlain;
  const float* norm_weight = nullptr;  // [K], for kRmsNorm
  float eps = 0.0f;
  float* y = nullptr;  // [T, N], rows at stride ldy
  int64_t ldy = 0;
  bool accumulate = false;      // y += instead of y =
  const float* bias = nullptr;  // [N] or null
  ActPrecision precision = ActPrecision::kInt8Peak;
  nvfp4::Rule act_rule = nvfp4::Rule::kFourOverSix;  // of kNvfp4
};

// Bytes of scratch that matmul needs for T tokens and inner size K, aligned to 64: for kInt8Peak
// and kInt15, or for any precision. Grows with T, so that room for the largest T serves every
// smaller one.
int64_t workspace_bytes(DType dtype, int64_t t, int64_t k, bool any_precision = false);

// Throws Error when the arguments cannot be multiplied with w (sizes, strides, missing pointers).
// For the caller's set-up code: matmul itself checks nothing.
void validate(const PackedWeight& w, const MatmulArgs& args);

// SPMD: all threads of the team call it with the same arguments; ends with a barrier. y must not
// overlap x.
void matmul(Team& team, const PackedWeight& w, const MatmulArgs& args, std::byte* workspace);

// The same on all threads of the pool, with a workspace of its own: for single products, not for
// the steps of a model.
void matmul(ThreadPool& pool, const PackedWeight& w, const MatmulArgs& args);

// The instruction set in use: "avx512vnni", "avx2", "neon" or "scalar". LONGSPUR_ISA in the
// environment of tests and benches lowers it (read by app/ and tests, passed here). Packed weights
// are the same for all.
std::string_view active_isa();
void limit_isa(std::string_view isa);  // for tests; throws Error on an unknown or unavailable name

}  // namespace longspur::kernels::qgemm
