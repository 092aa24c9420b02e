// Products of NVFP4 weights without vector instructions of our own choosing, and the arithmetic
// that the vector units must reproduce: exact integer dot products of 16 elements, two of which,
// times their scales, make a block of 32.
#include "kernels/qgemm/cpu/quant-inl.h"
#include "kernels/qgemm/params.h"

namespace longspur::kernels::qgemm {
namespace {

template <class T>
inline T value_at(const std::byte* p) {
  T value;
  __builtin_memcpy(&value, p, sizeof value);
  return value;
}

constexpr int8_t kTwice[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

// Half the value of a scale byte, for the doubled values of the codes.
inline float half_scale(const std::byte* p) {
  const uint32_t bits = uint32_t(*p);
  if (bits < 8) return float(bits) * 0x1p-10f;  // subnormal
  return __builtin_bit_cast(float, (bits << 20) + (119u << 23));
}

// Dot product of half `half` of row r of a block with its 16 codes.
inline int32_t dot(const std::byte* block, int64_t r, int half, const std::byte* codes) {
  int32_t sum = 0;
  for (int64_t k = 0; k < kHalf; ++k) {
    const uint32_t byte = value_at<uint8_t>(block + k / 4 * 64 + r * 4 + k % 4);
    sum += kTwice[half == 0 ? byte & 15u : byte >> 4] * value_at<int8_t>(codes + half * kHalf + k);
  }
  return sum;
}

inline int32_t dot_peak(const std::byte* block, int64_t r, int half, const PeakOfHalves& peak) {
  if (peak.part / 4 != half) return 0;
  int32_t sum = 0;
  for (int64_t b = 0; b < 4; ++b) {
    const uint32_t byte = value_at<uint8_t>(block + peak.part % 4 * 64 + r * 4 + b);
    sum += kTwice[half == 0 ? byte & 15u : byte >> 4] * peak.high[half][b];
  }
  return sum;
}

struct Scalar {
  static constexpr int kMostTokens = 1;

  static void write_rows(const ProductParams& p, const float* sum, int64_t token, int64_t row) {
    const int64_t rows = p.n - row < kGroupRows ? p.n - row : kGroupRows;
    float* y = p.y + token * p.ldy + row;
    for (int64_t r = 0; r < rows; ++r) {
      float value = sum[r] * p.row_scale[row + r];
      if (p.token_scale != nullptr) value *= p.token_scale[token];
      if (p.bias != nullptr) value += p.bias[row + r];
      y[r] = p.accumulate ? y[r] + value : value;
    }
  }

  template <WeightKind kKind, int kTokens, CodeKind kCodes>
  static void block_tile(const ProductParams& p,
                         const std::byte* weight,
                         const Piece& piece,
                         int64_t row) {
    const std::byte* scale = piece.scale;
    const std::byte* codes = piece.codes;
    const std::byte* peaks = piece.peaks;
    float sum[kGroupRows] = {};
    for (int64_t k = 0; k < p.k; k += kBlock) {
      for (int64_t r = 0; r < kGroupRows; ++r) {
        float term[2];
        for (int half = 0; half < 2; ++half) {
          int32_t total = dot(weight, r, half, codes);
          if constexpr (kCodes == kInt15Codes)
            total = 128 * total + dot(weight, r, half, codes + piece.width * kBlock);
          if constexpr (kCodes == kPeakCodes)
            total += 128 * dot_peak(weight, r, half, value_at<PeakOfHalves>(peaks));
          const float d = half_scale(weight + 256 + half * kHalf + r);
          if constexpr (kCodes == kNvfp4Codes) {
            sum[r] += float(total) * (d * value_at<float>(scale + half * piece.width * 4));
          } else {
            term[half] = float(total) * d;
          }
        }
        if constexpr (kCodes != kNvfp4Codes) sum[r] += (term[0] + term[1]) * value_at<float>(scale);
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

void nvfp4_product_scalar(const ProductParams& p,
                          int64_t group_begin,
                          int64_t group_end,
                          int64_t token_begin,
                          int64_t token_end) {
  quant_product<Scalar, kNvfp4Kind>(p, group_begin, group_end, token_begin, token_end);
}

}  // namespace longspur::kernels::qgemm
