// Products of NVFP4 weights for 64-bit ARM with dot products (sdot): 16 rows are four registers.
// Codes become twice their value by a table look-up; they are signed, so no offset is needed.
#include <arm_neon.h>

#include "kernels/qgemm/cpu/quant-inl.h"
#include "kernels/qgemm/params.h"

namespace longspur::kernels::qgemm {
namespace {

constexpr float kUnit = 128.0f;  // 2^8 of scales_of, 2^-1 of the doubled values

template <class T>
inline T value_at(const std::byte* p) {
  T value;
  __builtin_memcpy(&value, p, sizeof value);
  return value;
}
inline uint8x16_t bytes_at(const std::byte* p) {
  return vld1q_u8(reinterpret_cast<const uint8_t*>(p));
}

inline int8x16_t values_of(uint8x16_t codes) {  // codes < 16
  constexpr int8_t kTwice[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
  return vqtbl1q_s8(vld1q_s8(kTwice), codes);
}

// E4M3 bits are those of an fp16 number 2^-8 as large, subnormal ones too, once moved by 7.
inline void scales_of(const std::byte* p, float32x4_t (&d)[4]) {
  const uint8x16_t bytes = bytes_at(p);
  const uint16x8_t low = vshll_n_u8(vget_low_u8(bytes), 7);
  const uint16x8_t high = vshll_n_u8(vget_high_u8(bytes), 7);
  d[0] = vcvt_f32_f16(vreinterpret_f16_u16(vget_low_u16(low)));
  d[1] = vcvt_f32_f16(vreinterpret_f16_u16(vget_high_u16(low)));
  d[2] = vcvt_f32_f16(vreinterpret_f16_u16(vget_low_u16(high)));
  d[3] = vcvt_f32_f16(vreinterpret_f16_u16(vget_high_u16(high)));
}

// dot[h][q] += half h of rows 4q .. 4q + 3 times its 16 codes.
inline void add_dots(const std::byte* block, const std::byte* codes, int32x4_t (&dot)[2][4]) {
  const int8x16_t x0 = vreinterpretq_s8_u8(bytes_at(codes));
  const int8x16_t x1 = vreinterpretq_s8_u8(bytes_at(codes + kHalf));
  const auto part = [&]<int kLane>() {
#pragma GCC unroll 4
    for (int q = 0; q < 4; ++q) {
      const uint8x16_t w = bytes_at(block + 64 * kLane + 16 * q);
      const int8x16_t low = values_of(vandq_u8(w, vdupq_n_u8(0x0f)));
      const int8x16_t high = values_of(vshrq_n_u8(w, 4));
      dot[0][q] = vdotq_laneq_s32(dot[0][q], low, x0, kLane);
      dot[1][q] = vdotq_laneq_s32(dot[1][q], high, x1, kLane);
    }
  };
  part.template operator()<0>();
  part.template operator()<1>();
  part.template operator()<2>();
  part.template operator()<3>();
}

// dot[h][q] += 128 times rows 4q .. 4q + 3 of a block's peak part times its high bytes.
inline void add_peak(const std::byte* block, const std::byte* at, int32x4_t (&dot)[2][4]) {
  const auto peak = value_at<PeakOfHalves>(at);
  for (int h = 0; h < 2; ++h) {
    const int8x16_t x = vreinterpretq_s8_s32(vdupq_n_s32(value_at<int32_t>(at + 4 * h)));
    for (int q = 0; q < 4; ++q) {
      const uint8x16_t w = bytes_at(block + 64 * (peak.part & 3) + 16 * q);
      const int8x16_t v =
          values_of(peak.part < 4 ? vandq_u8(w, vdupq_n_u8(0x0f)) : vshrq_n_u8(w, 4));
      dot[h][q] = vaddq_s32(dot[h][q], vshlq_n_s32(vdotq_s32(vdupq_n_s32(0), v, x), 7));
    }
  }
}

struct Neon {
  static constexpr int kMostTokens = 1;

  static void write_rows(const ProductParams& p,
                         const float32x4_t (&sum)[4],
                         int64_t token,
                         int64_t row) {
    float values[kGroupRows];
    for (int q = 0; q < 4; ++q) {
      float32x4_t value = vmulq_n_f32(sum[q], kUnit);
      value = vmulq_f32(value, vld1q_f32(p.row_scale + row + 4 * q));
      if (p.token_scale != nullptr) value = vmulq_n_f32(value, p.token_scale[token]);
      vst1q_f32(values + 4 * q, value);
    }
    const int64_t rows = p.n - row < kGroupRows ? p.n - row : kGroupRows;
    float* y = p.y + token * p.ldy + row;
    for (int64_t r = 0; r < rows; ++r) {
      const float value = p.bias == nullptr ? values[r] : values[r] + p.bias[row + r];
      y[r] = p.accumulate ? y[r] + value : value;
    }
  }

  template <WeightKind kKind, int kTokens, CodeKind kCodes>
  static void block_tile(const ProductParams& p,
                         const std::byte* weight,
                         const Piece& piece,
                         int64_t row) {
    const int64_t low = piece.width * kBlock, next = piece.width * 4;
    const std::byte* scale = piece.scale;
    const std::byte* codes = piece.codes;
    const std::byte* peaks = piece.peaks;
    float32x4_t sum[4];
    for (float32x4_t& s : sum) s = vdupq_n_f32(0.0f);
    for (int64_t k = 0; k < p.k; k += kBlock, weight += block_bytes(kKind)) {
      int32x4_t dot[2][4];
      for (int i = 0; i < 8; ++i) dot[i / 4][i % 4] = vdupq_n_s32(0);
      add_dots(weight, codes, dot);
      if constexpr (kCodes == kInt15Codes) {
        for (int i = 0; i < 8; ++i) dot[i / 4][i % 4] = vshlq_n_s32(dot[i / 4][i % 4], 7);
        add_dots(weight, codes + low, dot);
      }
      if constexpr (kCodes == kPeakCodes) add_peak(weight, peaks, dot);
      float32x4_t d0[4], d1[4];
      scales_of(weight + 256, d0);
      scales_of(weight + 272, d1);
      const float s = value_at<float>(scale);
      for (int q = 0; q < 4; ++q) {
        const float32x4_t first = vcvtq_f32_s32(dot[0][q]), second = vcvtq_f32_s32(dot[1][q]);
        if constexpr (kCodes == kNvfp4Codes) {
          const float s2 = value_at<float>(scale + next);
          sum[q] = vfmaq_f32(sum[q], first, vmulq_n_f32(d0[q], s));
          sum[q] = vfmaq_f32(sum[q], second, vmulq_n_f32(d1[q], s2));
        } else {
          const float32x4_t both = vfmaq_f32(vmulq_f32(first, d0[q]), second, d1[q]);
          sum[q] = vfmaq_n_f32(sum[q], both, s);
        }
      }
      scale += piece.block_bytes;
      codes += piece.block_bytes;
      peaks += piece.block_bytes;
    }
    write_rows(p, sum, piece.token, row);
  }
};

}  // namespace

void nvfp4_product_neon(const ProductParams& p,
                        int64_t group_begin,
                        int64_t group_end,
                        int64_t token_begin,
                        int64_t token_end) {
  quant_product<Neon, kNvfp4Kind>(p, group_begin, group_end, token_begin, token_end);
}

}  // namespace longspur::kernels::qgemm
