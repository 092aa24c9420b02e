// The case list of the quantised products, used by the test: every type, sizes that are tiny, odd
// or one off a tile, and rows of weights and activations made to hurt.
#pragma once

#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "base/dtype.h"
#include "base/half.h"
#include "base/rng.h"
#include "kernels/qgemm/api.h"

namespace longspur::kernels::qgemm {

struct Shape {
  int64_t t, n, k;
};

inline constexpr DType kTypes[] = {DType::kQ4_1, DType::kQ4_0, DType::kQ8_0, DType::kNVFP4,
                                   DType::kF32,  DType::kF16,  DType::kBF16};

inline std::vector<Shape> shapes(DType dtype) {
  std::vector<Shape> list = {{1, 1, 32},    {1, 16, 64},   {2, 17, 32},  {3, 15, 96},
                             {7, 33, 160},  {15, 48, 96},  {16, 31, 64}, {17, 16, 128},
                             {20, 100, 96}, {133, 19, 64}, {1, 960, 576}};
  for (int64_t t = 4; t <= 14; ++t) list.push_back({t, 16, 32});
  if (dtype == DType::kNVFP4)
    for (Shape& shape : list) shape.k = (shape.k + 63) / 64 * 64;
  if (dtype_info(dtype).block == 1)
    list.insert(list.end(), {{1, 1, 1}, {2, 5, 3}, {9, 17, 31}, {6, 40, 77}, {133, 3, 13}});
  return list;
}

// A scale for a block: mostly ordinary, now and then zero, subnormal, negative or huge.
inline uint16_t block_scale(Noise& noise, int64_t row) {
  switch (row % 9) {
    case 3:
      return 0;
    case 4:
      return uint16_t(noise.bits() % 0x400);  // subnormal
    case 5:
      return 0x7bff;  // 65504
    case 6:
      return float_to_fp16(-0.01f * (1 + noise.next()));
    default:
      return float_to_fp16(0.01f * (1 + noise.next()));
  }
}

// One NVFP4 scale: ordinary, or zero, subnormal, the largest, or with a sign bit, which is ignored.
inline uint8_t nvfp4_scale(Noise& noise, int64_t row) {
  switch (row % 9) {
    case 3:
      return 0;
    case 4:
      return uint8_t(noise.bits() % 8);
    case 5:
      return 0x7e;
    case 6:
      return uint8_t(0x80 + noise.bits() % 0x7f);
    case 7:
      return uint8_t(noise.bits() % 0x7f);
    default:
      return uint8_t(0x30 + noise.bits() % 16);
  }
}

// Blocks of 64; row 1 holds only -6, row 2 only 6, row 8 only minus zero.
inline std::vector<std::byte> make_nvfp4(int64_t n, int64_t k, uint64_t seed) {
  Noise noise(seed);
  std::vector<std::byte> out;
  for (int64_t row = 0; row < n; ++row) {
    for (int64_t block = 0; block < k / 64; ++block) {
      for (int i = 0; i < 4; ++i) out.push_back(std::byte(nvfp4_scale(noise, row)));
      for (int i = 0; i < 32; ++i) {
        const uint32_t any = noise.bits() & 0xffu;
        const int64_t kind = row % 9;
        out.push_back(std::byte(kind == 1 ? 0xff : kind == 2 ? 0x77 : kind == 8 ? 0x88 : any));
      }
    }
  }
  return out;
}

// Stored bytes of N rows. Row 1 holds only the lowest codes (-128 for Q8_0), row 2 the highest.
inline std::vector<std::byte> make_weights(DType dtype, int64_t n, int64_t k, uint64_t seed) {
  if (dtype == DType::kNVFP4) return make_nvfp4(n, k, seed);
  Noise noise(seed);
  std::vector<std::byte> out(size_t(dtype_bytes(dtype, n * k)));
  std::byte* p = out.data();
  const auto put16 = [&](uint16_t bits) {
    std::memcpy(p, &bits, sizeof bits);
    p += sizeof bits;
  };
  for (int64_t row = 0; row < n; ++row) {
    if (dtype_info(dtype).block == 1) {
      const float size = row % 9 == 3 ? 0.0f : row % 9 == 4 ? 1e-6f : row % 9 == 5 ? 1e4f : 0.1f;
      for (int64_t i = 0; i < k; ++i) {
        const float value = noise.next() * size;
        if (dtype == DType::kF32) {
          std::memcpy(p, &value, sizeof value);
          p += sizeof value;
        } else {
          put16(dtype == DType::kF16 ? float_to_fp16(value) : float_to_bf16(value));
        }
      }
      continue;
    }
    for (int64_t block = 0; block < k / 32; ++block) {
      put16(block_scale(noise, row));
      if (dtype == DType::kQ4_1) put16(float_to_fp16(noise.next() * 0.1f));
      for (int64_t i = 0; i < (dtype == DType::kQ8_0 ? 32 : 16); ++i) {
        const uint32_t low = dtype == DType::kQ8_0 ? 0x80u : 0u;
        const uint32_t high = dtype == DType::kQ8_0 ? 0x7fu : 0xffu;
        *p++ = std::byte(row % 9 == 1 ? low : row % 9 == 2 ? high : noise.bits() & 0xffu);
      }
    }
  }
  return out;
}

// T rows of `columns` values; the kind of row changes with t, `first` is the kind of row 0.
inline std::vector<float> make_input(int64_t t, int64_t columns, int64_t first, uint64_t seed) {
  Noise noise(seed);
  std::vector<float> out;
  for (int64_t row = 0; row < t; ++row) {
    for (int64_t i = 0; i < columns; ++i) {
      const float value = noise.next();
      switch ((row + first) % 8) {
        case 1:
          out.push_back(0.0f);
          break;
        case 2:
          out.push_back(i % 41 == 7 ? 1e4f : value);  // one huge value in some blocks
          break;
        case 3:
          out.push_back(value * 1e-39f);  // subnormal
          break;
        case 4:
          out.push_back(i % 2 == 0 ? 1.0f : -1.0f);
          break;
        case 5:
          out.push_back(-3.0f);
          break;
        case 6:
          out.push_back(value * 1e-4f);
          break;
        default:
          out.push_back(value * 2);
      }
    }
  }
  return out;
}

}  // namespace longspur::kernels::qgemm
