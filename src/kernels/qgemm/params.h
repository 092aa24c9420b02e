// Plain structs between the dispatcher and the instruction-set units, and the packed layouts.
// Nothing here has a body: these units are compiled under different flags, so an inline function
// seen by two of them could reach a machine that lacks its instructions.
//
// Weights. Sixteen rows make a group; a vector lane is a row. Rows past N are zero.
//   quantised, for each block of 32 along K:
//     4 bit: 4 x [16 rows][4 bytes]; byte b of part j holds k = 4j + b low, k = 16 + 4j + b high
//     8 bit: 8 x [16 rows][4 bytes]; byte b of part j holds k = 4j + b, stored as q + 128
//     then fp16 d[16], and for Q4_1 fp16 m[16]
//     NVFP4: codes as 4 bit, then the E4M3 scales of k = 0 .. 15 and 16 .. 31, uint8 d[2][16]; the
//     rows' fp32 multipliers lie apart.
//   F32, F16, BF16: for each k, [16 rows].
//
// Activations of quantised products. Tokens are cut into tiles of 16 (the last may be narrower,
// width W); for each tile and each block of 32 along K:
//     float scale[W]; offset[W]; then
//     kInt15Codes: int8 high[W][32]; int8 low[W][32]
//     kPeakCodes:  int8 low[W][32]; Peak peak[W]
//   x = scale * code, code = 128 * high + low, where high is zero outside of the peak, and low is
//   in [-64, 63] where high may be other than zero. offset folds the weights' zero point in: for
//   Q4_1 the float scale * sum(code) that m multiplies; for Q4_0 and Q8_0 the int32 -8 * sum(code)
//   or -128 * sum(code), from which the integer dot product starts.
// For NVFP4 weights, whose scales change after 16 elements, offset is int32[2][W], -12 * sum(code)
// of each half, and the peak is a PeakOfHalves. With kNvfp4Codes:
//     float scale[2][W]; int32 offset[2][W]; int8 code[W][32]
//   code is twice the E2M1 value, scale half the E4M3 value of 16 elements, and the multipliers of
//   tokens lie apart.
// Activations of float products: fp32 rows at a padded stride.
#pragma once

#include <cstddef>
#include <cstdint>

namespace longspur::kernels::qgemm {

inline constexpr int64_t kGroupRows = 16;
inline constexpr int64_t kBlock = 32;       // elements of a quantised block along K
inline constexpr int64_t kHalf = 16;        // elements of NVFP4 that share a scale
inline constexpr int64_t kTileTokens = 16;  // tokens of an activation tile

// The part (k = 4 * part .. 4 * part + 3) of a block whose codes have a high byte, and these bytes.
struct Peak {
  int8_t high[4];
  int32_t part;
};

// The same for weights with a scale each 16 elements: the bytes stand in the half that has them,
// and the other half is zero.
struct PeakOfHalves {
  int8_t high[2][4];
  int32_t part;
};

enum WeightKind {
  kQ4_1Kind,
  kQ4_0Kind,
  kQ8_0Kind,
  kNvfp4Kind,
  kF32Kind,
  kF16Kind,
  kBF16Kind,
  kWeightKinds
};

// How activations are coded; the values of ActPrecision in api.h.
enum CodeKind { kPeakCodes, kInt15Codes, kNvfp4Codes };

// How the input is read; the values of Input in api.h.
enum InputKind { kPlainInput, kRmsNormInput, kSwiGluInput };

// Bytes of one token's block of 32: before the codes, of its peak, and all.
constexpr int64_t header_bytes(WeightKind kind, CodeKind codes) {
  return kind != kNvfp4Kind ? 8 : codes == kNvfp4Codes ? 16 : 12;
}
constexpr int64_t peak_bytes(WeightKind kind) {
  return kind == kNvfp4Kind ? int64_t(sizeof(PeakOfHalves)) : int64_t(sizeof(Peak));
}
constexpr int64_t activation_block_bytes(WeightKind kind, CodeKind codes) {
  const int64_t more = codes == kNvfp4Codes ? 0 : codes == kInt15Codes ? kBlock : peak_bytes(kind);
  return header_bytes(kind, codes) + kBlock + more;
}

struct InputParams {
  const float* x;  // [T, K] or [T, 2K] at stride ldx
  int64_t ldx;
  int64_t t;
  int64_t k;
  InputKind input;
  const float* norm_weight;  // [K]
  float eps;
  WeightKind kind;
  CodeKind codes;        // kPeakCodes or kInt15Codes
  std::byte* out;        // see "Activations" above
  int64_t float_stride;  // elements between rows of `out` for float products
};

struct ProductParams {
  const std::byte* weight;  // first group
  int64_t group_bytes;
  int64_t n;
  int64_t k;
  const std::byte* activations;
  int64_t float_stride;
  CodeKind codes;
  const float* row_scale;    // NVFP4: [groups, 16]
  const float* token_scale;  // kNvfp4Codes: [T]
  int64_t t;
  float* y;  // [T, N] at stride ldy
  int64_t ldy;
  bool accumulate;
  const float* bias;  // [N] or null
};

// Tokens [token_begin, token_end) of the input; the range begins at a multiple of kTileTokens or
// anywhere in a narrower tile.
using InputFunction = void (*)(const InputParams&, int64_t token_begin, int64_t token_end);

// Row groups [group_begin, group_end) times tokens [token_begin, token_end); token_begin is a
// multiple of kTileTokens and token_end is one too or equals T.
using ProductFunction = void (*)(const ProductParams&,
                                 int64_t group_begin,
                                 int64_t group_end,
                                 int64_t token_begin,
                                 int64_t token_end);

struct KernelTable {
  const char* isa;
  InputFunction input;
  ProductFunction product[kWeightKinds];
};

// Products of NVFP4 weights, in units of their own.
#define LONGSPUR_QGEMM_PRODUCT(name) \
  void name(const ProductParams&, int64_t, int64_t, int64_t, int64_t)
LONGSPUR_QGEMM_PRODUCT(nvfp4_product_scalar);
LONGSPUR_QGEMM_PRODUCT(nvfp4_product_avx2);
LONGSPUR_QGEMM_PRODUCT(nvfp4_product_avx512);
LONGSPUR_QGEMM_PRODUCT(nvfp4_product_neon);
#undef LONGSPUR_QGEMM_PRODUCT

extern const KernelTable kScalarKernels;
#if defined(__x86_64__)
extern const KernelTable kAvx2Kernels;
extern const KernelTable kAvx512Kernels;
#elif defined(__aarch64__)
extern const KernelTable kNeonKernels;
#endif

}  // namespace longspur::kernels::qgemm
