// Values worked out by hand, one feature of a format at a time. That whole files agree with the
// gguf package bit for bit is tested in tests/python/test_readers.py.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "base/error.h"
#include "base/half.h"
#include "io/files/tensor_file.h"
#include "io/files/test_files.h"

namespace longspur::io {
namespace {

using testing::Bytes;

std::vector<float> read(DType dtype, const Bytes& bytes) {
  const DTypeInfo& info = dtype_info(dtype);
  const int64_t elements = int64_t(bytes.size()) / info.bytes * info.block;
  std::vector<float> values(size_t(elements), -99.0f);
  // at an odd address: sources need no alignment
  const std::string shifted = "x" + bytes.str();
  dequantize(dtype, reinterpret_cast<const std::byte*>(shifted.data()) + 1, elements,
             values.data());
  return values;
}

uint16_t half(float value) { return float_to_fp16(value); }

TEST(Dequantize, PlainTypes) {
  EXPECT_EQ(read(DType::kF64, Bytes().put(1.5).put(-1e300)), (std::vector<float>{1.5f, -INFINITY}));
  EXPECT_EQ(read(DType::kI64, Bytes().put(int64_t(-3))), std::vector<float>{-3.0f});
  EXPECT_EQ(read(DType::kU64, Bytes().put(~uint64_t(0))), std::vector<float>{0x1p64f});
  EXPECT_EQ(read(DType::kI8, Bytes().put(int8_t(-128))), std::vector<float>{-128.0f});
  EXPECT_EQ(read(DType::kBool, Bytes().raw(std::string_view("\0\1", 2))),
            (std::vector<float>{0, 1}));
  EXPECT_EQ(read(DType::kF16, Bytes().put(half(-0.25f)).put(uint16_t(1))),
            (std::vector<float>{-0.25f, 0x1p-24f}));
  EXPECT_EQ(read(DType::kBF16, Bytes().put(uint16_t(0x3fc0))), std::vector<float>{1.5f});
}

TEST(Dequantize, EightBitFloats) {
  EXPECT_EQ(read(DType::kF8E4M3, Bytes().raw("\x38\xb8\x7e\x01\x08")),
            (std::vector<float>{1.0f, -1.0f, 448.0f, 0x1p-9f, 0x1p-6f}));
  EXPECT_TRUE(std::isnan(read(DType::kF8E4M3, Bytes().raw("\x7f"))[0]));
  EXPECT_EQ(read(DType::kF8E5M2, Bytes().raw("\x3c\x7b\x01\x7c")),
            (std::vector<float>{1.0f, 57344.0f, 0x1p-16f, INFINITY}));
  EXPECT_EQ(read(DType::kF8E4M3FNUZ, Bytes().raw("\x40\x7f\x01")),
            (std::vector<float>{1.0f, 240.0f, 0x1p-10f}));
  EXPECT_EQ(read(DType::kF8E5M2FNUZ, Bytes().raw("\x40\x7f\x01")),
            (std::vector<float>{1.0f, 57344.0f, 0x1p-17f}));
  EXPECT_TRUE(std::isnan(read(DType::kF8E4M3FNUZ, Bytes().raw("\x80"))[0]));
  EXPECT_TRUE(std::isnan(read(DType::kF8E5M2FNUZ, Bytes().raw("\x80"))[0]));
  EXPECT_EQ(read(DType::kF8E8M0, Bytes().raw(std::string_view("\0\x7f\xfe", 3))),
            (std::vector<float>{0x1p-127f, 1.0f, 0x1p127f}));
  EXPECT_TRUE(std::isnan(read(DType::kF8E8M0, Bytes().raw("\xff"))[0]));
}

TEST(Dequantize, FourBitFloatsLowNibbleFirst) {
  EXPECT_EQ(read(DType::kF4, Bytes().raw("\x21\xf7")),
            (std::vector<float>{0.5f, 1.0f, 6.0f, -6.0f}));
}

// Value i of a block of 32 comes from one nibble: the low ones first, then the high ones.
TEST(Dequantize, NibbleOrder) {
  Bytes q4_0, q4_1;
  q4_0.put(half(2.0f));
  q4_1.put(half(2.0f)).put(half(0.5f));
  for (int i = 0; i < 16; ++i) {
    q4_0.put(uint8_t(i | (15 - i) << 4));
    q4_1.put(uint8_t(i | (15 - i) << 4));
  }
  const std::vector<float> a = read(DType::kQ4_0, q4_0), b = read(DType::kQ4_1, q4_1);
  for (size_t i = 0; i < 16; ++i) {
    EXPECT_EQ(a[i], 2.0f * (float(i) - 8.0f));
    EXPECT_EQ(a[i + 16], 2.0f * (7.0f - float(i)));
    EXPECT_EQ(b[i], 2.0f * float(i) + 0.5f);
    EXPECT_EQ(b[i + 16], 2.0f * float(15 - i) + 0.5f);
  }
}

// One fifth bit set at a time moves one value by 16 steps.
TEST(Dequantize, FifthBits) {
  for (size_t bit = 0; bit < 32; ++bit) {
    const Bytes nibbles = Bytes().raw(std::string(16, '\0'));
    const uint32_t high = 1u << bit;
    const std::vector<float> a =
        read(DType::kQ5_0, Bytes().put(half(1.0f)).put(high).raw(nibbles.str()));
    const std::vector<float> b =
        read(DType::kQ5_1, Bytes().put(half(1.0f)).put(half(3.0f)).put(high).raw(nibbles.str()));
    for (size_t i = 0; i < 32; ++i) {
      EXPECT_EQ(a[i], i == bit ? 0.0f : -16.0f);
      EXPECT_EQ(b[i], i == bit ? 19.0f : 3.0f);
    }
  }
}

TEST(Dequantize, Q8_0) {
  Bytes block;
  block.put(half(0.5f));
  for (int i = 0; i < 32; ++i) block.put(int8_t(i * 8 - 128));
  const std::vector<float> values = read(DType::kQ8_0, block);
  for (size_t i = 0; i < 32; ++i) EXPECT_EQ(values[i], 0.5f * (float(i) * 8.0f - 128.0f));
}

TEST(Dequantize, Nvfp4Scales) {
  // scales 1, 2^-9 (subnormal), 0x7f (reads as zero), 448; all codes 0.5 and -6
  const Bytes block =
      Bytes().raw("\x38\x01\x7f\x7e").raw(std::string(8, '\xf1') + std::string(24, '\xf1'));
  const std::vector<float> values = read(DType::kNVFP4, block);
  const float scales[] = {1.0f, 0x1p-9f, 0.0f, 448.0f};
  for (size_t i = 0; i < 64; ++i)
    EXPECT_EQ(values[i], scales[i / 16] * (i % 16 < 8 ? 0.5f : -6.0f)) << i;
}

// Zero blocks are zero in every block type, and each type reads as many blocks as there are.
TEST(Dequantize, ZeroBlocks) {
  for (const DType dtype : {DType::kQ8_0, DType::kQ4_1, DType::kQ5_1, DType::kQ4_K, DType::kQ5_K,
                            DType::kQ6_K, DType::kNVFP4, DType::kQ4_0, DType::kQ5_0}) {
    const auto bytes = size_t(3 * dtype_info(dtype).bytes);
    const std::vector<float> values = read(dtype, Bytes().raw(std::string(bytes, '\0')));
    ASSERT_EQ(int64_t(values.size()), 3 * dtype_info(dtype).block);
    for (const float value : values) EXPECT_EQ(value, 0.0f) << dtype_info(dtype).name;
  }
}

TEST(Dequantize, RefusesTypesItCannotConvert) {
  std::vector<float> values(4);
  const std::vector<std::byte> bytes(32);
  for (const DType dtype : {DType::kF6E2M3, DType::kF6E3M2, DType::kC64})
    EXPECT_THROW(dequantize(dtype, bytes.data(), 4, values.data()), UnsupportedError);
  dequantize(DType::kF32, nullptr, 0, nullptr);  // nothing to do
}

}  // namespace
}  // namespace longspur::io
