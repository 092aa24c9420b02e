#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <set>

#include "base/aligned_buffer.h"
#include "base/dtype.h"
#include "base/error.h"
#include "base/half.h"
#include "base/rng.h"
#include "base/shape.h"

namespace longspur {
namespace {

TEST(Half, EveryFp16RoundTrips) {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const float value = fp16_to_float(uint16_t(bits));
    if (std::isnan(value)) {
      EXPECT_TRUE(std::isnan(fp16_to_float(float_to_fp16(value))));
    } else {
      EXPECT_EQ(float_to_fp16(value), bits);
    }
  }
}

TEST(Half, EveryBf16RoundTrips) {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const float value = bf16_to_float(uint16_t(bits));
    if (std::isnan(value)) {
      EXPECT_TRUE(std::isnan(bf16_to_float(float_to_bf16(value))));
    } else {
      EXPECT_EQ(float_to_bf16(value), bits);
    }
  }
}

TEST(Half, RoundsToNearestEven) {
  EXPECT_EQ(bf16_to_float(float_to_bf16(1.0f + 0x1p-8f)), 1.0f);                // tie, even below
  EXPECT_EQ(bf16_to_float(float_to_bf16(1.0f + 3 * 0x1p-8f)), 1.0f + 0x1p-6f);  // tie, even above
  EXPECT_EQ(fp16_to_float(float_to_fp16(1.0f + 0x1p-11f)), 1.0f);
  EXPECT_EQ(fp16_to_float(float_to_fp16(65519.0f)), 65504.0f);
  EXPECT_TRUE(std::isinf(fp16_to_float(float_to_fp16(65520.0f))));
  EXPECT_EQ(fp16_to_float(float_to_fp16(0x1p-25f)), 0.0f);  // tie to zero
  EXPECT_EQ(fp16_to_float(float_to_fp16(0x1.8p-25f)), 0x1p-24f);
}

TEST(Philox, MatchesThePublishedVectors) {
  // Random123's known-answer file: philox4x32 10 rounds.
  EXPECT_EQ(philox4x32(0, 0, 0),
            (std::array<uint32_t, 4>{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(philox4x32(~0ull, ~0ull, ~0ull),
            (std::array<uint32_t, 4>{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
}

TEST(Philox, UniformStaysBelowOne) {
  EXPECT_LT(uniform01(0xffffffffu), 1.0f);
  EXPECT_EQ(uniform01(0), 0.0f);
}

TEST(Error, RequireCarriesTheValues) {
  try {
    require(false, "batch: found ", 0, ", expected at least 1");
    FAIL() << "require did not throw";
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), "batch: found 0, expected at least 1");
  }
}

TEST(Error, AssertThrowsInternalError) { EXPECT_THROW(LONGSPUR_ASSERT(1 == 2), InternalError); }

TEST(DType, BlockBytes) {
  EXPECT_EQ(dtype_bytes(DType::kQ4_1, 64), 40);
  EXPECT_EQ(dtype_bytes(DType::kQ6_K, 512), 420);
  EXPECT_EQ(dtype_info(DType::kNVFP4).name, "NVFP4");
  EXPECT_EQ(dtype_info(DType::kBF16).bytes, 2);
}

TEST(AlignedBuffer, IsAlignedAndMovable) {
  for (size_t bytes : {size_t(1), size_t(63), size_t(4097), size_t(5) << 20}) {
    AlignedBuffer buffer(bytes);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer.data()) % AlignedBuffer::kAlignment, 0u);
    buffer.data()[bytes - 1] = std::byte{7};
    AlignedBuffer moved = std::move(buffer);
    EXPECT_EQ(moved.data()[bytes - 1], std::byte{7});
    EXPECT_EQ(moved.size(), bytes);
  }
  EXPECT_EQ(AlignedBuffer(0).data(), nullptr);
}

TEST(Shape, RoundUp) {
  EXPECT_EQ(round_up(0, 16), 0);
  EXPECT_EQ(round_up(17, 16), 32);
  EXPECT_EQ(ceil_div(17, 16), 2);
}

}  // namespace
}  // namespace longspur
