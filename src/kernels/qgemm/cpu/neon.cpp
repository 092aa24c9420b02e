// Products for 64-bit ARM with dot products (sdot): 16 rows are four registers. Four activation
// bytes are broadcast from a register's lane; weights are taken as signed bytes (4 bit as they are,
// 8 bit back from their zero point), so that only Q4_0 uses the offset.
#include <arm_neon.h>

#define QGEMM_LANES 4
#include "kernels/qgemm/cpu/float-inl.h"
#include "kernels/qgemm/cpu/input-inl.h"
#include "kernels/qgemm/cpu/quant-inl.h"
#include "kernels/qgemm/params.h"

namespace longspur::kernels::qgemm {
namespace {

inline uint8x16_t bytes_at(const std::byte* p) {
  return vld1q_u8(reinterpret_cast<const uint8_t*>(p));
}
inline float32x4_t four_halves(const std::byte* p) {
  uint16x4_t bits;
  __builtin_memcpy(&bits, p, sizeof bits);
  return vcvt_f32_f16(vreinterpret_f16_u16(bits));
}
template <class T>
inline T value_at(const std::byte* p) {
  T value;
  __builtin_memcpy(&value, p, sizeof value);
  return value;
}

// sum[q] += rows 4q .. 4q + 3 of part j (0 to 7, four bytes of K) times its codes.
template <WeightKind kKind>
inline void add_parts(const std::byte* block, const std::byte* codes, int32x4_t (&sum)[4]) {
  const int8x16_t x0 = vreinterpretq_s8_u8(bytes_at(codes));
  const int8x16_t x1 = vreinterpretq_s8_u8(bytes_at(codes + 16));
  const auto part = [&]<int kLane>() {
#pragma GCC unroll 4
    for (int q = 0; q < 4; ++q) {
      const uint8x16_t w = bytes_at(block + 64 * kLane + 16 * q);
      if constexpr (kKind == kQ8_0Kind) {
        const uint8x16_t zero_point = vdupq_n_u8(0x80);
        const uint8x16_t v = bytes_at(block + 256 + 64 * kLane + 16 * q);
        sum[q] = vdotq_laneq_s32(sum[q], vreinterpretq_s8_u8(veorq_u8(w, zero_point)), x0, kLane);
        sum[q] = vdotq_laneq_s32(sum[q], vreinterpretq_s8_u8(veorq_u8(v, zero_point)), x1, kLane);
      } else {
        const uint8x16_t low = vandq_u8(w, vdupq_n_u8(0x0f));
        sum[q] = vdotq_laneq_s32(sum[q], vreinterpretq_s8_u8(low), x0, kLane);
        sum[q] = vdotq_laneq_s32(sum[q], vreinterpretq_s8_u8(vshrq_n_u8(w, 4)), x1, kLane);
      }
    }
  };
  part.template operator()<0>();
  part.template operator()<1>();
  part.template operator()<2>();
  part.template operator()<3>();
}

// sum[q] += 128 times rows 4q .. 4q + 3 of a block's peak part times its high bytes.
template <WeightKind kKind>
inline void add_peak(const std::byte* block, const std::byte* at, int32x4_t (&sum)[4]) {
  const auto peak = value_at<Peak>(at);
  const int8x16_t x = vreinterpretq_s8_s32(vdupq_n_s32(value_at<int32_t>(at)));
  const int part = kKind == kQ8_0Kind ? peak.part : peak.part & 3;
  for (int q = 0; q < 4; ++q) {
    uint8x16_t w = bytes_at(block + 64 * part + 16 * q);
    if constexpr (kKind == kQ8_0Kind) {
      w = veorq_u8(w, vdupq_n_u8(0x80));
    } else {
      w = peak.part < 4 ? vandq_u8(w, vdupq_n_u8(0x0f)) : vshrq_n_u8(w, 4);
    }
    const int32x4_t dot = vdotq_s32(vdupq_n_s32(0), vreinterpretq_s8_u8(w), x);
    sum[q] = vaddq_s32(sum[q], vshlq_n_s32(dot, 7));
  }
}

struct Neon {
  static constexpr int kMostTokens = 4;  // 16 dot products, weights unpacked again for each
  static constexpr int kFloatGroups = 1;
  static constexpr int kFloatTokens = 5;  // 20 sums and 4 weights of 32 registers

  struct Rows16 {
    float32x4_t v[4];
    void clear() {
      for (float32x4_t& quarter : v) quarter = vdupq_n_f32(0.0f);
    }
    void madd(const Rows16& w, float x) {
      for (int q = 0; q < 4; ++q) v[q] = vfmaq_n_f32(v[q], w.v[q], x);
    }
  };

  template <WeightKind kKind>
  static Rows16 load_weights(const std::byte* p) {
    Rows16 w;
    for (int q = 0; q < 4; ++q) {
      if constexpr (kKind == kF32Kind) {
        w.v[q] = vld1q_f32(reinterpret_cast<const float*>(p) + 4 * q);
      } else if constexpr (kKind == kF16Kind) {
        w.v[q] = four_halves(p + 8 * q);
      } else {
        const auto bits = value_at<uint16x4_t>(p + 8 * q);
        w.v[q] = vreinterpretq_f32_u32(vshll_n_u16(bits, 16));
      }
    }
    return w;
  }

  static void write_rows(const ProductParams& p, const Rows16& sum, int64_t token, int64_t row) {
    float values[kGroupRows];
    for (int q = 0; q < 4; ++q) vst1q_f32(values + 4 * q, sum.v[q]);
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
    constexpr bool kTwo = kCodes == kInt15Codes;
    constexpr int64_t kScales = kKind == kQ8_0Kind ? 512 : 256;
    const int64_t low = piece.width * kBlock, offset = piece.width * 4;
    const std::byte* scale = piece.scale;
    const std::byte* codes = piece.codes;
    const std::byte* peaks = piece.peaks;
    Rows16 sum[kTokens];
    for (int t = 0; t < kTokens; ++t) sum[t].clear();
    for (int64_t k = 0; k < p.k; k += kBlock, weight += block_bytes(kKind)) {
#pragma GCC unroll 4
      for (int t = 0; t < kTokens; ++t) {
        int32x4_t dot[4];
        const int32_t first = kKind == kQ4_0Kind ? value_at<int32_t>(scale + offset + 4 * t) : 0;
        for (int q = 0; q < 4; ++q) dot[q] = vdupq_n_s32(kTwo ? 0 : first);
        add_parts<kKind>(weight, codes + t * kBlock, dot);
        if constexpr (kTwo) {
          for (int q = 0; q < 4; ++q)
            dot[q] = vaddq_s32(vshlq_n_s32(dot[q], 7), vdupq_n_s32(first));
          add_parts<kKind>(weight, codes + low + t * kBlock, dot);
        } else {
          add_peak<kKind>(weight, peaks + t * int(sizeof(Peak)), dot);
        }
        const float s = value_at<float>(scale + 4 * t);
        for (int q = 0; q < 4; ++q) {
          const float32x4_t ds = vmulq_n_f32(four_halves(weight + kScales + 8 * q), s);
          float32x4_t& total = sum[t].v[q];
          total = vfmaq_f32(total, vcvtq_f32_s32(dot[q]), ds);
          if constexpr (kKind == kQ4_1Kind)
            total = vfmaq_n_f32(total, four_halves(weight + kScales + 32 + 8 * q),
                                value_at<float>(scale + offset + 4 * t));
        }
      }
      scale += piece.block_bytes;
      codes += piece.block_bytes;
      peaks += piece.block_bytes;
    }
    for (int t = 0; t < kTokens; ++t) write_rows(p, sum[t], piece.token + t, row);
  }
};

}  // namespace

const KernelTable kNeonKernels = {
    .isa = "neon",
    .input = run_input,
    .product = {quant_product<Neon, kQ4_1Kind>, quant_product<Neon, kQ4_0Kind>,
                quant_product<Neon, kQ8_0Kind>, nvfp4_product_neon, float_product<Neon, kF32Kind>,
                float_product<Neon, kF16Kind>, float_product<Neon, kBF16Kind>},
};

}  // namespace longspur::kernels::qgemm
