#include "io/files/nvfp4.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "base/rng.h"
#include "io/files/test_files.h"
#include "kernels/nvfp4/codec.h"

namespace longspur::io {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using testing::refusal;
namespace codec = kernels::nvfp4;

std::vector<uint8_t> random_bytes(Noise& noise, int64_t count, uint32_t below = 256) {
  std::vector<uint8_t> bytes(size_t(count), 0);
  for (uint8_t& byte : bytes) byte = uint8_t(noise.bits() % below);
  return bytes;
}

// Byte j of a sub-block: element j low, j + 8 high; and back again, whatever the bytes.
TEST(Nvfp4, GgufBlocksHoldTheSameElements) {
  Noise noise(1);
  constexpr int64_t k = 192;
  const auto codes = random_bytes(noise, k / 2), scales = random_bytes(noise, k / 16);
  std::vector<std::byte> blocks(k / 64 * 36);
  to_gguf_blocks(codes.data(), scales.data(), k, blocks.data());
  for (int64_t i = 0; i < k; ++i) {
    const int64_t sub = i / 16 % 4, at = i % 16;
    const std::byte byte = blocks[size_t(i / 64 * 36 + 4 + sub * 8 + at % 8)];
    EXPECT_EQ(std::to_integer<int>(byte) >> (at / 8 * 4) & 15,
              codes[size_t(i / 2)] >> (i % 2 * 4) & 15);
    EXPECT_EQ(blocks[size_t(i / 64 * 36 + sub)], std::byte(scales[size_t(i / 16)]));
  }
  std::vector<uint8_t> codes_back(codes.size()), scales_back(scales.size());
  from_gguf_blocks(blocks.data(), k, codes_back.data(), scales_back.data());
  EXPECT_EQ(codes_back, codes);
  EXPECT_EQ(scales_back, scales);
}

TEST(Nvfp4, DequantisesAsGgufsReaderDoes) {
  Noise noise(2);
  constexpr int64_t k = 512;
  const auto codes = random_bytes(noise, k / 2), scales = random_bytes(noise, k / 16, 0x7f);
  std::vector<std::byte> blocks(k / 64 * 36);
  to_gguf_blocks(codes.data(), scales.data(), k, blocks.data());
  std::vector<float> expected(k), found(k);
  dequantize(DType::kNVFP4, blocks.data(), k, expected.data());
  dequantize_nvfp4(codes.data(), scales.data(), k, 0.37f, found.data());
  for (int64_t i = 0; i < k; ++i) EXPECT_EQ(found[size_t(i)], expected[size_t(i)] * 0.37f);
}

TEST(Nvfp4, SwizzlingMovesEveryScaleOnceAndBack) {
  Noise noise(3);
  for (const auto& [rows, columns] :
       {std::pair<int64_t, int64_t>{1, 1}, {131, 7}, {128, 4}, {300, 9}}) {
    auto scales = random_bytes(noise, rows * columns, 255);
    for (uint8_t& scale : scales) ++scale;  // padding is 0
    std::vector<uint8_t> swizzled(size_t(codec::swizzled_scale_bytes(rows, columns)), 0xff);
    swizzle_scales(scales.data(), rows, columns, swizzled.data());
    EXPECT_EQ(std::count(swizzled.begin(), swizzled.end(), 0),
              int64_t(swizzled.size()) - rows * columns);
    std::vector<uint8_t> back(scales.size());
    unswizzle_scales(swizzled.data(), rows, columns, back.data());
    EXPECT_EQ(back, scales);
  }
  // the published offsets of a matrix with 8 columns
  std::vector<uint8_t> one(131 * 8, 0), swizzled(256 * 8);
  one[130 * 8 + 7] = 1;
  swizzle_scales(one.data(), 131, 8, swizzled.data());
  EXPECT_EQ(std::find(swizzled.begin(), swizzled.end(), 1) - swizzled.begin(), 1571);
}

// A divisor gives the multiplier back where any float can, else its neighbour; from then on nothing
// changes any more.
TEST(Nvfp4, DirectionsOfTheScaleAreInverse) {
  Noise noise(4);
  EXPECT_EQ(stored_scale(0.3f, ScaleDirection::kMultiplier), 0.3f);
  int exact = 0;
  for (int i = 0; i < 1000; ++i) {
    const float multiplier = std::exp(4.0f * noise.next()) / 1536.0f;
    const float divisor = stored_scale(multiplier, ScaleDirection::kDivisor);
    const float back = multiplier_of(divisor, ScaleDirection::kDivisor);
    exact += back == multiplier;
    EXPECT_TRUE(back == multiplier || back == std::nextafter(multiplier, 0.0f) ||
                back == std::nextafter(multiplier, 1.0f));
    EXPECT_EQ(multiplier_of(stored_scale(back, ScaleDirection::kDivisor), ScaleDirection::kDivisor),
              back);
  }
  EXPECT_GT(exact, 700);
}

Nvfp4Matrix small_matrix() {
  Nvfp4Matrix matrix{"w", 2, 32, std::vector<uint8_t>(32, 0x11), std::vector<uint8_t>(4, 0x38),
                     0.5f};
  return matrix;
}

TEST(Nvfp4, MatricesThatMakeNoSenseAreRefused) {
  EXPECT_NO_THROW(validate(small_matrix()));
  const auto refused = [](auto change, const char* expected) {
    Nvfp4Matrix matrix = small_matrix();
    change(matrix);
    EXPECT_THAT(refusal([&] { validate(matrix); }), AllOf(HasSubstr("'w'"), HasSubstr(expected)));
  };
  refused([](Nvfp4Matrix& m) { m.k = 24; }, "rows of a multiple of 16");
  refused([](Nvfp4Matrix& m) { m.rows = 0; }, "rows of a multiple of 16");
  refused([](Nvfp4Matrix& m) { m.rows = int64_t(1) << 62; }, "bytes of codes");
  refused([](Nvfp4Matrix& m) { m.codes.pop_back(); }, "found 31 bytes of codes");
  refused([](Nvfp4Matrix& m) { m.scales.push_back(0); }, "found 5 block scales");
  refused([](Nvfp4Matrix& m) { m.scales[3] = 0x7f; }, "found the byte 127");
  refused([](Nvfp4Matrix& m) { m.scales[0] = 0x80; }, "found the byte 128");
  refused([](Nvfp4Matrix& m) { m.multiplier = std::nanf(""); }, "found a multiplier of nan");
  refused([](Nvfp4Matrix& m) { m.multiplier = -1; }, "found a multiplier of -1");
  refused([](Nvfp4Matrix& m) { m.input_multiplier = INFINITY; }, "found a multiplier of inf");
  refused([](Nvfp4Matrix& m) { m.multiplier = 1e30f / 1536; }, "in the other direction");
}

}  // namespace
}  // namespace longspur::io
