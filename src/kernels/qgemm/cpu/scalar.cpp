// Products without vector instructions of our own choosing: the plain loops over the packed layout
// that every machine can run, and the arithmetic that the vector units must reproduce.
#define QGEMM_LANES 4
#include "kernels/qgemm/cpu/float-inl.h"
#include "kernels/qgemm/cpu/input-inl.h"
#include "kernels/qgemm/cpu/quant-inl.h"
#include "kernels/qgemm/params.h"

namespace longspur::kernels::qgemm {
namespace {

inline float half_at(const std::byte* p) {
  uint16_t bits;
  __builtin_memcpy(&bits, p, sizeof bits);
  const uint32_t sign = uint32_t(bits & 0x8000u) << 16;
  const uint32_t rest = bits & 0x7fffu;
  if (rest < 0x0400u) {  // zero and subnormal: a multiple of 2^-24
    const float value = float(rest) * 0x1p-24f;
    return sign != 0 ? -value : value;
  }
  const uint32_t exponent = rest >= 0x7c00u ? 0x70000000u : 0x38000000u;
  return __builtin_bit_cast(float, sign | ((rest << 13) + exponent));
}

template <class T>
inline T value_at(const std::byte* p) {
  T value;
  __builtin_memcpy(&value, p, sizeof value);
  return value;
}

struct Scalar {
  static constexpr int kMostTokens = 1;
  static constexpr int kFloatGroups = 1;
  static constexpr int kFloatTokens = 4;

  struct Rows16 {
    float v[kGroupRows];
    void clear() {
      for (float& x : v) x = 0.0f;
    }
    void madd(const Rows16& w, float x) {
      for (int r = 0; r < kGroupRows; ++r) v[r] += w.v[r] * x;
    }
  };

  template <WeightKind kKind>
  static Rows16 load_weights(const std::byte* p) {
    Rows16 w;
    for (int r = 0; r < kGroupRows; ++r) {
      if constexpr (kKind == kF32Kind) w.v[r] = value_at<float>(p + 4 * r);
      if constexpr (kKind == kF16Kind) w.v[r] = half_at(p + 2 * r);
      if constexpr (kKind == kBF16Kind)
        w.v[r] = __builtin_bit_cast(float, uint32_t(value_at<uint16_t>(p + 2 * r)) << 16);
    }
    return w;
  }

  static void write_rows(const ProductParams& p, const Rows16& sum, int64_t token, int64_t row) {
    const int64_t rows = p.n - row < kGroupRows ? p.n - row : kGroupRows;
    float* y = p.y + token * p.ldy + row;
    for (int64_t r = 0; r < rows; ++r) {
      float value = sum.v[r];
      if (p.bias != nullptr) value += p.bias[row + r];
      y[r] = p.accumulate ? y[r] + value : value;
    }
  }

  // Dot product of row r of a block with 32 codes.
  template <WeightKind kKind>
  static int32_t dot(const std::byte* block, int64_t r, const std::byte* codes) {
    int32_t sum = 0;
    for (int64_t k = 0; k < kBlock; ++k) {
      const int32_t x = value_at<int8_t>(codes + k);
      const int64_t part = kKind == kQ8_0Kind ? k / 4 : k % 16 / 4;
      const int32_t w = value_at<uint8_t>(block + part * 64 + r * 4 + k % 4);
      if constexpr (kKind == kQ8_0Kind) {
        sum += w * x;
      } else {
        sum += (k < 16 ? w & 15 : w >> 4) * x;
      }
    }
    return sum;
  }

  // Dot product of row r of a block with the high bytes of its peak.
  template <WeightKind kKind>
  static int32_t dot_peak(const std::byte* block, int64_t r, const Peak& peak) {
    int32_t sum = 0;
    for (int64_t b = 0; b < 4; ++b) {
      const int64_t part = kKind == kQ8_0Kind ? peak.part : peak.part % 4;
      int32_t w = value_at<uint8_t>(block + part * 64 + r * 4 + b);
      if constexpr (kKind != kQ8_0Kind) w = peak.part < 4 ? w & 15 : w >> 4;
      sum += w * peak.high[b];
    }
    return sum;
  }

  template <WeightKind kKind, int kTokens, CodeKind kCodes>
  static void block_tile(const ProductParams& p,
                         const std::byte* weight,
                         const Piece& piece,
                         int64_t row) {
    constexpr bool kTwo = kCodes == kInt15Codes;
    constexpr int64_t kScales = kKind == kQ8_0Kind ? 512 : 256;
    const std::byte* scale = piece.scale;
    const std::byte* codes = piece.codes;
    const std::byte* peaks = piece.peaks;
    Rows16 sum{};
    for (int64_t k = 0; k < p.k; k += kBlock) {
      const float s = value_at<float>(scale);
      const std::byte* offset = scale + piece.width * 4;
      for (int64_t r = 0; r < kGroupRows; ++r) {
        int32_t total = kKind == kQ4_1Kind ? 0 : value_at<int32_t>(offset);
        if constexpr (kTwo) {
          total += 128 * dot<kKind>(weight, r, codes) +
                   dot<kKind>(weight, r, codes + piece.width * kBlock);
        } else {
          total += 128 * dot_peak<kKind>(weight, r, value_at<Peak>(peaks)) +
                   dot<kKind>(weight, r, codes);
        }
        sum.v[r] += float(total) * (half_at(weight + kScales + 2 * r) * s);
        if constexpr (kKind == kQ4_1Kind)
          sum.v[r] += half_at(weight + kScales + 32 + 2 * r) * value_at<float>(offset);
      }
      weight += block_bytes(kKind);
      scale += piece.block_bytes;
      codes += piece.block_bytes;
      peaks += piece.block_bytes;
    }
    write_rows(p, sum, piece.token, row);
  }
};

}  // namespace

const KernelTable kScalarKernels = {
    .isa = "scalar",
    .input = run_input,
    .product = {quant_product<Scalar, kQ4_1Kind>, quant_product<Scalar, kQ4_0Kind>,
                quant_product<Scalar, kQ8_0Kind>, nvfp4_product_scalar,
                float_product<Scalar, kF32Kind>, float_product<Scalar, kF16Kind>,
                float_product<Scalar, kBF16Kind>},
};

}  // namespace longspur::kernels::qgemm
