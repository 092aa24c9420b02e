// Stored block formats to fp32, one block at a time. Formulas and layouts are those of the GGUF
// format (ggml's quantised types); scales multiply in fp32 in the order the format's own readers
// use, so that results are equal bit for bit.
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "base/error.h"
#include "base/half.h"
#include "io/files/tensor_file.h"

namespace longspur::io {

namespace {

template <class T>
T load(const std::byte* from) {
  T value;
  std::memcpy(&value, from, sizeof(T));
  return value;
}

float load_fp16(const std::byte* from) { return fp16_to_float(load<uint16_t>(from)); }
int byte_at(const std::byte* from, int64_t i) { return int(std::to_integer<uint8_t>(from[i])); }

// E4M3 as OCP defines it: bias 7, no infinity, 0x7f and 0xff are NaN.
float e4m3_to_float(int bits) {
  const int exponent = (bits >> 3) & 15, mantissa = bits & 7;
  float value = exponent == 0 ? float(mantissa) * 0x1p-9f
                              : std::ldexp(1.0f + float(mantissa) / 8.0f, exponent - 7);
  if (exponent == 15 && mantissa == 7) value = std::numeric_limits<float>::quiet_NaN();
  return bits & 0x80 ? -value : value;
}

// The variants without negative zero and infinity: bias one higher, 0x80 is NaN.
float fnuz_to_float(int bits, int mantissa_bits) {
  if (bits == 0x80) return std::numeric_limits<float>::quiet_NaN();
  const int bias = mantissa_bits == 3 ? 8 : 16, one = 1 << mantissa_bits;
  const int exponent = (bits & 0x7f) >> mantissa_bits, mantissa = bits & (one - 1);
  const float value = exponent == 0
                          ? std::ldexp(float(mantissa), 1 - bias - mantissa_bits)
                          : std::ldexp(float(one + mantissa), exponent - bias - mantissa_bits);
  return bits & 0x80 ? -value : value;
}

float e8m0_to_float(int bits) {
  return bits == 0xff ? std::numeric_limits<float>::quiet_NaN() : std::ldexp(1.0f, bits - 127);
}

constexpr std::array<float, 16> kE2m1 = {0, 0.5f,  1,  1.5f,  2,  3,  4,  6,
                                         0, -0.5f, -1, -1.5f, -2, -3, -4, -6};

float e5m2_to_float(int bits) { return fp16_to_float(uint16_t(bits << 8)); }

void block_q8_0(const std::byte* block, float* out) {
  const float d = load_fp16(block);
  for (int i = 0; i < 32; ++i) out[i] = d * float(load<int8_t>(block + 2 + i));
}

void block_q4_0(const std::byte* block, float* out) {
  const float d = load_fp16(block);
  for (int i = 0; i < 16; ++i) {
    out[i] = d * float((byte_at(block, 2 + i) & 15) - 8);
    out[i + 16] = d * float((byte_at(block, 2 + i) >> 4) - 8);
  }
}

void block_q4_1(const std::byte* block, float* out) {
  const float d = load_fp16(block), m = load_fp16(block + 2);
  for (int i = 0; i < 16; ++i) {
    out[i] = d * float(byte_at(block, 4 + i) & 15) + m;
    out[i + 16] = d * float(byte_at(block, 4 + i) >> 4) + m;
  }
}

// The 5-bit types keep the fifth bits of the 32 values in one word before the nibbles.
int five_bits(const std::byte* nibbles, uint32_t high, int i) {
  const int nibble = i < 16 ? byte_at(nibbles, i) & 15 : byte_at(nibbles, i - 16) >> 4;
  return nibble | int((high >> i) & 1u) << 4;
}

void block_q5_0(const std::byte* block, float* out) {
  const float d = load_fp16(block);
  const auto high = load<uint32_t>(block + 2);
  for (int i = 0; i < 32; ++i) out[i] = d * float(five_bits(block + 6, high, i) - 16);
}

void block_q5_1(const std::byte* block, float* out) {
  const float d = load_fp16(block), m = load_fp16(block + 2);
  const auto high = load<uint32_t>(block + 4);
  for (int i = 0; i < 32; ++i) out[i] = d * float(five_bits(block + 8, high, i)) + m;
}

// Scale and minimum (6 bits each) of sub-block j of the 12 packed bytes of Q4_K and Q5_K.
struct ScaleMin {
  int scale, min;
};
ScaleMin scale_min(const std::byte* packed, int j) {
  if (j < 4) return {byte_at(packed, j) & 63, byte_at(packed, j + 4) & 63};
  return {(byte_at(packed, j + 4) & 15) | ((byte_at(packed, j - 4) >> 6) << 4),
          (byte_at(packed, j + 4) >> 4) | ((byte_at(packed, j) >> 6) << 4)};
}

void block_q4_k(const std::byte* block, float* out) {
  const float d = load_fp16(block), dmin = load_fp16(block + 2);
  const std::byte* nibbles = block + 16;
  for (int j = 0; j < 8; ++j) {
    const ScaleMin sm = scale_min(block + 4, j);
    const float scale = d * float(sm.scale), min = dmin * float(sm.min);
    for (int i = 0; i < 32; ++i) {
      const int byte = byte_at(nibbles, (j / 2) * 32 + i);
      out[j * 32 + i] = scale * float(j % 2 == 0 ? byte & 15 : byte >> 4) - min;
    }
  }
}

void block_q5_k(const std::byte* block, float* out) {
  const float d = load_fp16(block), dmin = load_fp16(block + 2);
  const std::byte *high = block + 16, *nibbles = block + 48;
  for (int j = 0; j < 8; ++j) {
    const ScaleMin sm = scale_min(block + 4, j);
    const float scale = d * float(sm.scale), min = dmin * float(sm.min);
    for (int i = 0; i < 32; ++i) {
      const int byte = byte_at(nibbles, (j / 2) * 32 + i);
      const int low = j % 2 == 0 ? byte & 15 : byte >> 4;
      out[j * 32 + i] = scale * float(low | ((byte_at(high, i) >> j) & 1) << 4) - min;
    }
  }
}

void block_q6_k(const std::byte* block, float* out) {
  const std::byte *low = block, *high = block + 128, *scales = block + 192;
  const float d = load_fp16(block + 208);
  for (int i = 0; i < 256; ++i) {
    const int half = i / 128, within = i % 128, quarter = within / 32, lane = within % 32;
    const int low_byte = byte_at(low, half * 64 + (quarter % 2) * 32 + lane);
    const int low_bits = quarter < 2 ? low_byte & 15 : low_byte >> 4;
    const int high_bits = (byte_at(high, half * 32 + lane) >> (2 * quarter)) & 3;
    const float scale = d * float(load<int8_t>(scales + i / 16));
    out[i] = scale * float((low_bits | high_bits << 4) - 32);
  }
}

// Four sub-blocks of 16 with an unsigned E4M3 scale each (a scale of the whole tensor is stored
// beside it); element i of a sub-block is the low nibble of byte i for i < 8, else the high nibble
// of byte i - 8. The format reads the scale 0x7f as zero; a sign bit is not looked at otherwise.
void block_nvfp4(const std::byte* block, float* out) {
  for (int sub = 0; sub < 4; ++sub) {
    const int code = byte_at(block, sub);
    const float mantissa = float(code & 7), exponent = float((code >> 3) & 15);
    const float normal = std::ldexp(1.0f + mantissa / 8.0f, int(exponent) - 7);
    const float scale = code == 0x7f ? 0.0f : exponent == 0 ? mantissa * 0x1p-9f : normal;
    for (int i = 0; i < 8; ++i) {
      const int byte = byte_at(block, 4 + sub * 8 + i);
      out[sub * 16 + i] = scale * kE2m1[size_t(byte & 15)];
      out[sub * 16 + 8 + i] = scale * kE2m1[size_t(byte >> 4)];
    }
  }
}

using ReadBlock = void (*)(const std::byte* block, float* out);

ReadBlock block_reader(DType dtype) {
  switch (dtype) {
    case DType::kQ8_0:
      return block_q8_0;
    case DType::kQ4_0:
      return block_q4_0;
    case DType::kQ4_1:
      return block_q4_1;
    case DType::kQ5_0:
      return block_q5_0;
    case DType::kQ5_1:
      return block_q5_1;
    case DType::kQ4_K:
      return block_q4_k;
    case DType::kQ5_K:
      return block_q5_k;
    case DType::kQ6_K:
      return block_q6_k;
    case DType::kNVFP4:
      return block_nvfp4;
    default:
      throw UnsupportedError(concat(dtype_info(dtype).name, ": has no conversion to F32"));
  }
}

// n values of the type T, each through `to_float`.
template <class T, class ToFloat>
void each(const std::byte* src, int64_t n, float* dst, ToFloat to_float) {
  for (int64_t i = 0; i < n; ++i) dst[i] = to_float(load<T>(src + i * int64_t(sizeof(T))));
}

template <class T>
void convert(const std::byte* src, int64_t n, float* dst) {
  each<T>(src, n, dst, [](T value) { return float(value); });
}

}  // namespace

void dequantize(DType dtype, const std::byte* src, int64_t n, float* dst) {
  const DTypeInfo& info = dtype_info(dtype);
  LONGSPUR_ASSERT(n % info.block == 0);
  switch (dtype) {
    case DType::kF64:
      return convert<double>(src, n, dst);
    case DType::kF32:
      if (n > 0) std::memcpy(dst, src, size_t(n) * sizeof(float));
      return;
    case DType::kF16:
      return each<uint16_t>(src, n, dst, fp16_to_float);
    case DType::kBF16:
      return each<uint16_t>(src, n, dst, bf16_to_float);
    case DType::kF8E4M3:
      return each<uint8_t>(src, n, dst, e4m3_to_float);
    case DType::kF8E5M2:
      return each<uint8_t>(src, n, dst, e5m2_to_float);
    case DType::kF8E8M0:
      return each<uint8_t>(src, n, dst, e8m0_to_float);
    case DType::kF8E4M3FNUZ:
      return each<uint8_t>(src, n, dst, [](int bits) { return fnuz_to_float(bits, 3); });
    case DType::kF8E5M2FNUZ:
      return each<uint8_t>(src, n, dst, [](int bits) { return fnuz_to_float(bits, 2); });
    case DType::kF4:
      for (int64_t i = 0; i < n; ++i)
        dst[i] = kE2m1[size_t(byte_at(src, i / 2) >> (i % 2 * 4) & 15)];
      return;
    case DType::kI64:
      return convert<int64_t>(src, n, dst);
    case DType::kI32:
      return convert<int32_t>(src, n, dst);
    case DType::kI16:
      return convert<int16_t>(src, n, dst);
    case DType::kI8:
      return convert<int8_t>(src, n, dst);
    case DType::kU64:
      return convert<uint64_t>(src, n, dst);
    case DType::kU32:
      return convert<uint32_t>(src, n, dst);
    case DType::kU16:
      return convert<uint16_t>(src, n, dst);
    case DType::kU8:
    case DType::kBool:
      return convert<uint8_t>(src, n, dst);
    default: {
      const ReadBlock read = block_reader(dtype);
      for (int64_t b = 0; b < n / info.block; ++b) read(src + b * info.bytes, dst + b * info.block);
    }
  }
}

}  // namespace longspur::io
