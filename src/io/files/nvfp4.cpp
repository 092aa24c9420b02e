#include "io/files/nvfp4.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "base/error.h"
#include "io/files/checked.h"
#include "io/files/printable.h"
#include "kernels/nvfp4/codec.h"

namespace longspur::io {

namespace codec = kernels::nvfp4;

namespace {

constexpr int64_t kBlock = codec::kBlock;
constexpr int64_t kGgufValues = 64, kGgufScales = 4, kGgufBytes = 36;

// Eight nibbles to the low halves of eight bytes, and back.
uint64_t spread_nibbles(uint64_t x) {
  x = (x | x << 16) & 0x0000ffff0000ffffu;
  x = (x | x << 8) & 0x00ff00ff00ff00ffu;
  return (x | x << 4) & 0x0f0f0f0f0f0f0f0fu;
}
uint32_t gather_nibbles(uint64_t x) {
  x &= 0x0f0f0f0f0f0f0f0fu;
  x = (x | x >> 4) & 0x00ff00ff00ff00ffu;
  x = (x | x >> 8) & 0x0000ffff0000ffffu;
  return uint32_t(x | x >> 16);
}

}  // namespace

float multiplier_of(float stored, ScaleDirection direction) {
  return direction == ScaleDirection::kMultiplier ? stored : 1.0f / stored;
}

float stored_scale(float multiplier, ScaleDirection direction) {
  if (direction == ScaleDirection::kMultiplier) return multiplier;
  const float inverse = 1.0f / multiplier;
  if (!std::isfinite(inverse)) return std::numeric_limits<float>::max();  // as good as zeros
  for (const float candidate :
       {inverse, std::nextafter(inverse, 0.0f), std::nextafter(inverse, INFINITY)})
    if (1.0f / candidate == multiplier) return candidate;
  return inverse;
}

float durable_multiplier(float multiplier) {
  if (!(multiplier > std::numeric_limits<float>::min())) return multiplier;
  return multiplier_of(stored_scale(multiplier, ScaleDirection::kDivisor),
                       ScaleDirection::kDivisor);
}

void to_gguf_blocks(const uint8_t* codes, const uint8_t* scales, int64_t k, std::byte* blocks) {
  for (int64_t at = 0; at < k; at += kGgufValues, blocks += kGgufBytes) {
    std::memcpy(blocks, scales + at / kBlock, kGgufScales);
    for (int64_t sub = 0; sub < kGgufScales; ++sub) {
      uint32_t half[2];  // elements 0 to 7 and 8 to 15
      std::memcpy(half, codes + (at + sub * kBlock) / 2, sizeof(half));
      const uint64_t mixed = spread_nibbles(half[0]) | spread_nibbles(half[1]) << 4;
      std::memcpy(blocks + kGgufScales + sub * 8, &mixed, sizeof(mixed));
    }
  }
}

void from_gguf_blocks(const std::byte* blocks, int64_t k, uint8_t* codes, uint8_t* scales) {
  for (int64_t at = 0; at < k; at += kGgufValues, blocks += kGgufBytes) {
    std::memcpy(scales + at / kBlock, blocks, kGgufScales);
    for (int64_t sub = 0; sub < kGgufScales; ++sub) {
      uint64_t mixed = 0;
      std::memcpy(&mixed, blocks + kGgufScales + sub * 8, sizeof(mixed));
      const uint32_t half[2] = {gather_nibbles(mixed), gather_nibbles(mixed >> 4)};
      std::memcpy(codes + (at + sub * kBlock) / 2, half, sizeof(half));
    }
  }
}

void swizzle_scales(const uint8_t* scales, int64_t rows, int64_t columns, uint8_t* swizzled) {
  std::fill_n(swizzled, codec::swizzled_scale_bytes(rows, columns), uint8_t(0));
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t column = 0; column < columns; ++column)
      swizzled[codec::swizzled_scale_offset(row, column, columns)] = scales[row * columns + column];
}

void unswizzle_scales(const uint8_t* swizzled, int64_t rows, int64_t columns, uint8_t* scales) {
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t column = 0; column < columns; ++column)
      scales[row * columns + column] = swizzled[codec::swizzled_scale_offset(row, column, columns)];
}

void dequantize_nvfp4(
    const uint8_t* codes, const uint8_t* scales, int64_t k, float multiplier, float* values) {
  for (int64_t block = 0; block < k / kBlock; ++block, codes += kBlock / 2, values += kBlock) {
    const float scale = codec::e4m3_decode(scales[block]);
    for (int i = 0; i < kBlock; ++i)
      values[i] = codec::e2m1_decode(codes[i / 2] >> (i % 2 * 4) & 15) * scale * multiplier;
  }
}

void BlockScaleCheck::add(const uint8_t* scales, int64_t count) {
  // a scale that is none has the largest byte: one comparison tells at the end
  for (int64_t i = 0; i < count; ++i) largest_ = std::max(largest_, scales[i]);
}

void BlockScaleCheck::finish(const std::string& name, float multiplier) const {
  require(largest_ <= codec::kE4m3MaxCode, name, ": block scales: found the byte ", int(largest_),
          ", expected E4M3 numbers from 0 to ", int(codec::kE4m3MaxCode), " (no NaN, no sign)");
  const float largest = codec::kE2m1Max * codec::e4m3_decode(largest_) * multiplier;
  require(largest <= kLargestWeight, name, ": found weights up to ", largest, ", expected at most ",
          kLargestWeight,
          ": the scale of the tensor is probably stored in the other direction (multiplier, "
          "divisor)");
}

void validate(const Nvfp4Matrix& matrix) {
  const std::string where = concat("tensor ", shown(matrix.name));
  require(matrix.rows >= 1 && matrix.k >= kBlock && matrix.k % kBlock == 0, where,
          ": found a matrix of [", matrix.rows, ", ", matrix.k,
          "], expected rows of a multiple of 16 values");
  const auto values = checked_multiply(matrix.rows, matrix.k);
  require(values.has_value() && int64_t(matrix.codes.size()) == *values / 2, where, ": found ",
          matrix.codes.size(), " bytes of codes, expected one for two values");
  require(int64_t(matrix.scales.size()) == *values / kBlock, where, ": found ",
          matrix.scales.size(), " block scales, expected ", *values / kBlock);
  for (const float multiplier : {matrix.multiplier, matrix.input_multiplier})
    require(std::isfinite(multiplier) && multiplier >= 0.0f, where, ": found a multiplier of ",
            multiplier, ", expected a finite number, not negative");
  BlockScaleCheck check;
  check.add(matrix.scales.data(), int64_t(matrix.scales.size()));
  check.finish(where, matrix.multiplier);
}

int64_t StoredNvfp4::bytes() const {
  return int64_t(codes->data.size() + (scales ? scales->data.size() : 0));
}

void StoredNvfp4::read_row(int64_t row, uint8_t* codes_out, uint8_t* scales_out) const {
  const auto* from = reinterpret_cast<const uint8_t*>(codes->data.data()) + row * code_stride;
  if (form == Form::kGguf)
    return from_gguf_blocks(reinterpret_cast<const std::byte*>(from), k, codes_out, scales_out);
  std::memcpy(codes_out, from, size_t(k / 2));
  const auto* scale = reinterpret_cast<const uint8_t*>(scales->data.data());
  if (!swizzled) {
    std::memcpy(scales_out, scale + row * scale_columns, size_t(k / kBlock));
    return;
  }
  for (int64_t column = 0; column < k / kBlock; ++column)
    scales_out[column] = scale[codec::swizzled_scale_offset(row, column, scale_columns)];
}

Nvfp4Matrix read_nvfp4(const StoredNvfp4& stored, const std::string& name) {
  Nvfp4Matrix matrix;
  matrix.name = name;
  matrix.rows = stored.rows;
  matrix.k = stored.k;
  matrix.multiplier = stored.multiplier;
  matrix.input_multiplier = stored.input_multiplier;
  matrix.codes.resize(size_t(stored.rows * stored.k / 2));
  matrix.scales.resize(size_t(stored.rows * stored.k / kBlock));
  for (int64_t row = 0; row < stored.rows; ++row)
    stored.read_row(row, matrix.codes.data() + row * stored.k / 2,
                    matrix.scales.data() + row * stored.k / kBlock);
  validate(matrix);
  return matrix;
}

}  // namespace longspur::io
