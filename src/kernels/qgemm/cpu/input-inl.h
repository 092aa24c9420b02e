// The input stage of every instruction set: transform x (nothing, RMSNorm, SwiGLU) and write it as
// the product wants it, int8 codes with scales or fp32 rows. Written with vector extensions and
// compiled once in each unit under that unit's flags; everything is in the anonymous namespace. The
// unit defines QGEMM_LANES, the floats of its vector (a power of two from 4 to 16).
//
// Quantisation, for each 32 elements: scale = top / L, code = round_to_even(x * (L / top)). With 15
// bits top = max|x| and L = 16256 = 127 * 128. With a peak, L = 127 and top is the largest
// magnitude outside of the peak, the part of four that has the largest of all (ties: the lower
// index); but at least 1/127 of the peak's own, so that its codes fit. A block whose maximum is
// below 1e-30 becomes zero. A NaN or infinity makes its block's codes zero and its scale NaN or
// infinite: the output is NaN.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

#include "kernels/qgemm/params.h"

namespace longspur::kernels::qgemm {
namespace {

constexpr int kLanes = QGEMM_LANES;
constexpr int kBlockVecs = int(kBlock) / kLanes;
typedef float FloatVec __attribute__((vector_size(4 * QGEMM_LANES)));
typedef int32_t IntVec __attribute__((vector_size(4 * QGEMM_LANES)));
typedef int8_t ByteVec __attribute__((vector_size(QGEMM_LANES)));

inline FloatVec load_floats(const float* p) {
  FloatVec v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
inline void store_floats(float* p, FloatVec v) { __builtin_memcpy(p, &v, sizeof v); }
inline FloatVec splat(float x) { return FloatVec{} + x; }
inline IntVec bits_of(FloatVec v) { return reinterpret_cast<IntVec>(v); }
inline FloatVec floats_of(IntVec v) { return reinterpret_cast<FloatVec>(v); }

using Lanes = std::make_integer_sequence<int, kLanes>;

template <int kStep, class Vec, int... kLane>
inline Vec swap_lanes(Vec v, std::integer_sequence<int, kLane...>) {
  return __builtin_shuffle(v, IntVec{(kLane ^ kStep)...});
}

// The lanes of v folded with op(a, b), in a fixed tree; the result in every lane.
template <int kStep = kLanes / 2, class Vec, class Op>
inline Vec fold(Vec v, Op op) {
  if constexpr (kStep == 0) {
    return v;
  } else {
    return fold<kStep / 2>(op(v, swap_lanes<kStep>(v, Lanes{})), op);
  }
}
inline float sum_lanes(FloatVec v) {
  return fold(v, [](FloatVec a, FloatVec b) { return a + b; })[0];
}
inline int32_t sum_lanes(IntVec v) {
  return fold(v, [](IntVec a, IntVec b) { return a + b; })[0];
}

// e^x for |x| <= 87 (clamped), within 2 ulp: 2^n times a polynomial on [-ln2/2, ln2/2].
inline FloatVec exp_vec(FloatVec x) {
  x = x > 87.0f ? splat(87.0f) : x;
  x = x < -87.0f ? splat(-87.0f) : x;
  const FloatVec magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  const FloatVec shifted = x * 1.44269504f + magic;
  const FloatVec n = shifted - magic;
  const FloatVec r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  FloatVec p = splat(1.98756915e-4f);
  p = p * r + 1.39819995e-3f;
  p = p * r + 8.33345190e-3f;
  p = p * r + 4.16657960e-2f;
  p = p * r + 1.66666655e-1f;
  p = p * r + 5.00000012e-1f;
  p = p * r * r + r + 1.0f;
  const IntVec exponent = (bits_of(shifted) - 0x4b400000 + 127) << 23;
  return p * floats_of(exponent);
}

inline FloatVec load_partial(const float* p, int64_t count) {
  if (count >= kLanes) return load_floats(p);
  FloatVec v{};
  __builtin_memcpy(&v, p, size_t(count) * sizeof(float));
  return v;
}

// Readers: read(i, count) is elements [i, i + 16) of the transformed row, zero from `count` on.
struct PlainReader {
  const float* x;
  FloatVec operator()(int64_t i, int64_t count) const { return load_partial(x + i, count); }
};
struct NormReader {
  const float* x;
  const float* weight;
  float inverse_rms;
  FloatVec operator()(int64_t i, int64_t count) const {
    return load_partial(x + i, count) * inverse_rms * load_partial(weight + i, count);
  }
};
struct SwiGluReader {
  const float* gate;
  const float* up;
  FloatVec operator()(int64_t i, int64_t count) const {
    const FloatVec g = load_partial(gate + i, count);
    return g / (exp_vec(-g) + 1.0f) * load_partial(up + i, count);
  }
};

inline float inverse_rms(const float* x, int64_t k, float eps) {
  FloatVec sum{};
  for (int64_t i = 0; i < k; i += kLanes) {
    const FloatVec v = load_partial(x + i, k - i);
    sum += v * v;
  }
  return 1.0f / __builtin_sqrtf(sum_lanes(sum) / float(k) + eps);
}

// Where one token's blocks go: bases of its tile and the distance between blocks.
struct CodeRow {
  std::byte* block;  // scale of this token in the first block
  int64_t block_bytes;
  int64_t width;  // W
  int64_t token;  // in the tile
};

inline void store_codes(std::byte* out, const IntVec (&codes)[kBlockVecs]) {
  for (int i = 0; i < kBlockVecs; ++i) {
    const ByteVec bytes = __builtin_convertvector(codes[i], ByteVec);
    __builtin_memcpy(out + i * kLanes, &bytes, sizeof bytes);
  }
}

inline IntVec max_of(IntVec a, IntVec b) { return a > b ? a : b; }
inline IntVec min_of(IntVec a, IntVec b) { return a < b ? a : b; }

// The part of four that each lane of a block's vector i belongs to.
template <int... kLane>
inline IntVec part_of_lanes(int i, std::integer_sequence<int, kLane...>) {
  return IntVec{(kLane / 4)...} + i * (kLanes / 4);
}

// The part with the largest magnitude, and the largest magnitude of the others, as bits.
struct PeakOf {
  int32_t part;
  int32_t others;
};
inline PeakOf find_peak(const IntVec (&magnitude)[kBlockVecs], int32_t largest) {
  IntVec first = IntVec{} + 8;
  for (int i = 0; i < kBlockVecs; ++i) {
    const IntVec part = part_of_lanes(i, Lanes{});
    first = min_of(first, magnitude[i] == largest ? part : IntVec{} + 8);
  }
  const IntVec peak = fold(first, min_of);
  IntVec others{};
  for (int i = 0; i < kBlockVecs; ++i)
    others = max_of(others, part_of_lanes(i, Lanes{}) == peak ? IntVec{} : magnitude[i]);
  return {peak[0], fold(others, max_of)[0]};
}

// The step of a block's codes, its inverse, and the part with high bytes.
struct Steps {
  float scale, inverse;
  int32_t peak;
  bool finite;
};
template <bool kTwo>
inline Steps choose_steps(const FloatVec (&x)[kBlockVecs]) {
  constexpr float kLimit = kTwo ? 16256.0f : 127.0f;
  // The magnitude's bits order like the magnitude, and NaN comes out largest.
  IntVec magnitude[kBlockVecs], all{};
  for (int i = 0; i < kBlockVecs; ++i) {
    magnitude[i] = bits_of(x[i]) & 0x7fffffff;
    all = max_of(all, magnitude[i]);
  }
  const int32_t largest_bits = fold(all, max_of)[0];
  const float largest = __builtin_bit_cast(float, largest_bits);
  const bool finite = largest <= 3.40282347e38f, zero = largest < 1e-30f;
  float top = largest;
  int32_t peak = 0;
  if constexpr (!kTwo) {
    const PeakOf found = find_peak(magnitude, largest_bits);
    const float others = __builtin_bit_cast(float, found.others), least = largest / 127.0f;
    peak = found.part;
    if (finite) top = others > least ? others : least;
  }
  return {zero ? 0.0f : top / kLimit, zero || !finite ? 0.0f : kLimit / top, peak, finite};
}

// The high bytes of a block's peak.
inline void write_peak(const std::byte* high, int32_t part, WeightKind kind, std::byte* out) {
  if (kind == kNvfp4Kind) {
    PeakOfHalves stored{};
    __builtin_memcpy(stored.high[part / 4], high, sizeof stored.high[0]);
    stored.part = part;
    __builtin_memcpy(out, &stored, sizeof stored);
    return;
  }
  Peak stored;
  __builtin_memcpy(stored.high, high, sizeof stored.high);
  stored.part = part;
  __builtin_memcpy(out, &stored, sizeof stored);
}

// Splits codes into bytes and writes them; `block` is this token's scale, 4 bytes a token into the
// tile's block.
template <bool kTwo>
inline void write_codes(IntVec (&codes)[kBlockVecs],
                        int32_t peak,
                        WeightKind kind,
                        const CodeRow& row,
                        std::byte* block) {
  IntVec upper[kBlockVecs];
  for (int i = 0; i < kBlockVecs; ++i) {
    upper[i] = (codes[i] + 64) >> 7;
    if constexpr (!kTwo) upper[i] = part_of_lanes(i, Lanes{}) == peak ? upper[i] : IntVec{};
    codes[i] -= upper[i] << 7;
  }
  const int64_t header = header_bytes(kind, kPeakCodes);
  std::byte* first = block + row.width * header + row.token * (kBlock - 4);
  std::byte* second = first + row.width * kBlock;
  if constexpr (kTwo) {
    store_codes(first, upper);
    store_codes(second, codes);
  } else {
    store_codes(first, codes);
    std::byte bytes[kBlock];
    store_codes(bytes, upper);
    std::byte* peaks = block - row.token * 4 + row.width * (header + kBlock);
    write_peak(bytes + 4 * peak, peak, kind, peaks + row.token * peak_bytes(kind));
  }
}

// What the zero point of a block's weights takes off, in the form that the product wants.
inline void write_offset(const IntVec (&codes)[kBlockVecs],
                         float scale,
                         WeightKind kind,
                         int64_t width,
                         std::byte* out) {
  if (kind == kNvfp4Kind) {
    for (int half = 0; half < 2; ++half) {
      IntVec total{};
      for (int i = 0; i < kBlockVecs / 2; ++i) total += codes[half * (kBlockVecs / 2) + i];
      const uint32_t offset = uint32_t(sum_lanes(total)) * uint32_t(-12);
      __builtin_memcpy(out + half * width * 4, &offset, sizeof offset);
    }
    return;
  }
  IntVec total{};
  for (int i = 0; i < kBlockVecs; ++i) total += codes[i];
  const int32_t sum = sum_lanes(total);
  if (kind == kQ4_1Kind) {
    const float offset = scale * float(sum);
    __builtin_memcpy(out, &offset, sizeof offset);
  } else {
    const uint32_t offset = uint32_t(sum) * (kind == kQ4_0Kind ? uint32_t(-8) : uint32_t(-128));
    __builtin_memcpy(out, &offset, sizeof offset);
  }
}

template <bool kTwo>
inline void quantize_block(FloatVec (&x)[kBlockVecs],
                           WeightKind kind,
                           const CodeRow& row,
                           std::byte* block) {
  const Steps steps = choose_steps<kTwo>(x);
  if (!steps.finite) {  // the scale spoils the row by itself; the codes must only stay summable
    for (FloatVec& v : x) v = FloatVec{};
  }
  const FloatVec magic = splat(12582912.0f);
  IntVec codes[kBlockVecs];
  for (int i = 0; i < kBlockVecs; ++i)
    codes[i] = bits_of(x[i] * steps.inverse + magic) - 0x4b400000;
  __builtin_memcpy(block, &steps.scale, sizeof steps.scale);
  write_offset(codes, steps.scale, kind, row.width, block + row.width * 4);
  write_codes<kTwo>(codes, steps.peak, kind, row, block);
}

// A few blocks are transformed before any is quantised: the two dependent chains in one, exp and
// then the fold over a block, would leave too little for the processor to overlap (SwiGLU: 31 ns a
// block, against 24).
constexpr int64_t kChunk = 8 * kBlock;

template <bool kTwo, class Reader>
inline void quantize_row(const Reader& read, const InputParams& p, const CodeRow& row) {
  std::byte* block = row.block;
  alignas(64) float chunk[kChunk];
  for (int64_t begin = 0; begin < p.k; begin += kChunk) {
    const int64_t count = p.k - begin < kChunk ? p.k - begin : kChunk;
    for (int64_t i = 0; i < count; i += kLanes) store_floats(chunk + i, read(begin + i, kLanes));
    for (int64_t i = 0; i < count; i += kBlock, block += row.block_bytes) {
      FloatVec x[kBlockVecs];
      for (int v = 0; v < kBlockVecs; ++v) x[v] = load_floats(chunk + i + v * kLanes);
      quantize_block<kTwo>(x, p.kind, row, block);
    }
  }
}

template <class Reader>
inline void write_row(const Reader& read, const InputParams& p, int64_t token) {
  if (p.kind >= kF32Kind) {
    float* out = reinterpret_cast<float*>(p.out) + token * p.float_stride;
    for (int64_t i = 0; i < p.k; i += kLanes) store_floats(out + i, read(i, p.k - i));
    return;
  }
  const int64_t tile = token / kTileTokens * kTileTokens;
  const int64_t width = p.t - tile < kTileTokens ? p.t - tile : kTileTokens;
  const int64_t token_bytes = activation_block_bytes(p.kind, p.codes);
  const CodeRow row{.block = p.out + tile * (p.k / kBlock) * token_bytes + (token - tile) * 4,
                    .block_bytes = width * token_bytes,
                    .width = width,
                    .token = token - tile};
  if (p.codes == kInt15Codes) {
    quantize_row<true>(read, p, row);
  } else {
    quantize_row<false>(read, p, row);
  }
}

void run_input(const InputParams& p, int64_t token_begin, int64_t token_end) {
  for (int64_t token = token_begin; token < token_end; ++token) {
    const float* x = p.x + token * p.ldx;
    switch (p.input) {
      case kPlainInput:
        write_row(PlainReader{x}, p, token);
        break;
      case kRmsNormInput:
        write_row(NormReader{x, p.norm_weight, inverse_rms(x, p.k, p.eps)}, p, token);
        break;
      case kSwiGluInput:
        write_row(SwiGluReader{x, x + p.k}, p, token);
        break;
    }
  }
}

}  // namespace
}  // namespace longspur::kernels::qgemm
