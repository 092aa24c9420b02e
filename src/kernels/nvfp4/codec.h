// NVFP4 number formats, for host and device code alike: E2M1 elements (4 bits), E4M3 block scales
// (8 bits, never negative), packing and scale layouts. Everything here is exact or rounds once, in
// fp32, to the nearest with ties to even; no result depends on whether the compiler contracts
// multiplications and additions.
//
// value of an element = e2m1 * e4m3(its block of 16 along K) * fp32(its tensor or row)
//
// Source: NVIDIA, "Pretraining Large Language Models with NVFP4", arXiv 2509.25149; OCP
// Microscaling Formats 1.0 (E2M1); OCP OFP8 1.0 (E4M3).
#pragma once

#include <cstdint>
#if !defined(__CUDA_ARCH__)
#include <bit>
#endif

#if defined(__CUDACC__)
#define LONGSPUR_HOST_DEVICE __host__ __device__
#else
#define LONGSPUR_HOST_DEVICE
#endif

namespace longspur::kernels::nvfp4 {

inline constexpr int kBlock = 16;  // elements along K that share a scale
inline constexpr float kE2m1Max = 6.0f;
inline constexpr float kE4m3Max = 448.0f;
inline constexpr uint8_t kE4m3MaxCode = 0x7e;
inline constexpr uint8_t kE4m3Nan = 0x7f;

namespace detail {
LONGSPUR_HOST_DEVICE inline uint32_t bits_of(float value) {
#if defined(__CUDA_ARCH__)
  return __float_as_uint(value);
#else
  return std::bit_cast<uint32_t>(value);
#endif
}
LONGSPUR_HOST_DEVICE inline float float_of(uint32_t bits) {
#if defined(__CUDA_ARCH__)
  return __uint_as_float(bits);
#else
  return std::bit_cast<float>(bits);
#endif
}
}  // namespace detail

// Nearest E2M1 code of x, ties to the even code, saturating at +-6; sign in bit 3. A result of zero
// is code 0 whatever the sign of x: minus zero (code 8) is read but never written. x: not NaN.
LONGSPUR_HOST_DEVICE inline uint8_t e2m1_encode(float x) {
  const uint32_t bits = detail::bits_of(x);
  float a = detail::float_of(bits & 0x7fffffffu);
  a = a < 8.0f ? a : 8.0f;
  // Adding a power of two whose unit in the last place is the grid step at `a` rounds to the grid;
  // the code is what then stands in the mantissa.
  const uint32_t field = detail::bits_of(a) >> 23;
  const uint32_t exponent = field > 127 ? field : 127;
  const float magic = detail::float_of((exponent + 22) << 23);
  const uint32_t step = detail::bits_of(a + magic) & 0x7fffffu;
  const uint32_t code = step + 2 * (exponent - 127);
  const uint32_t magnitude = code < 7 ? code : 7;
  return uint8_t(magnitude == 0 ? 0 : magnitude | (bits >> 31 << 3));
}

// Twice the value of a code's magnitude, as an integer: 0 1 2 3 4 6 8 12.
LONGSPUR_HOST_DEVICE inline int e2m1_twice(uint32_t code) {
  const uint32_t magnitude = code & 7u;
  const int value =
      magnitude < 4 ? int(magnitude) : int((4u | (magnitude & 1u) << 1) << (magnitude / 2 - 2));
  return code & 8u ? -value : value;
}
LONGSPUR_HOST_DEVICE inline float e2m1_decode(uint32_t code) {
  return 0.5f * float(e2m1_twice(code));
}

// Nearest E4M3 code of x >= 0, ties to even, saturating at 448. NaN gives kE4m3Nan.
LONGSPUR_HOST_DEVICE inline uint8_t e4m3_encode(float x) {
  if (!(x < kE4m3Max)) return x >= kE4m3Max ? kE4m3MaxCode : kE4m3Nan;
  if (x < 0x1p-6f)  // subnormal: steps of 2^-9, the unit in the last place at 2^14
    return uint8_t(detail::bits_of(x + 0x1p14f) & 0xffu);
  uint32_t bits = detail::bits_of(x);
  bits += 0x7ffffu + ((bits >> 20) & 1u);
  return uint8_t((bits >> 20) - (120u << 3));
}

// Value of an E4M3 code without sign; kE4m3Nan gives a NaN.
LONGSPUR_HOST_DEVICE inline float e4m3_decode(uint32_t code) {
  if (code < 8) return float(code) * 0x1p-9f;
  if (code == kE4m3Nan) return detail::float_of(0x7fc00000u);
  return detail::float_of((code << 20) + (120u << 23));
}

// Bytes of a row of K codes: element 2j in the low nibble of byte j, 2j + 1 in the high one.
constexpr int64_t code_bytes(int64_t k) { return k / 2; }

// The tiled scale layout of Blackwell's matrix instructions (cuBLASLt, CUTLASS): tiles of 128 rows
// by 4 scales, 512 bytes each; rows padded to 128, scales to 4.
constexpr int64_t swizzled_scale_bytes(int64_t rows, int64_t columns) {
  return (rows + 127) / 128 * 128 * ((columns + 3) / 4 * 4);
}
LONGSPUR_HOST_DEVICE inline int64_t swizzled_scale_offset(int64_t row,
                                                          int64_t column,
                                                          int64_t columns) {
  const int64_t tile = row / 128 * ((columns + 3) / 4) + column / 4;
  return (tile * 32 + row % 32) * 16 + row % 128 / 32 * 4 + column % 4;
}

}  // namespace longspur::kernels::nvfp4
