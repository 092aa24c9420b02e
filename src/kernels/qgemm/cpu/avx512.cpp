// Products for AVX-512 with VNNI: a register is 16 rows. A quantised block costs, for each token,
// eight vpdpbusd (unsigned weights, activations broadcast from memory), one conversion and two or
// three fp32 operations; weights are unpacked once for up to 16 tokens whose sums stay in
// registers. A peak costs one vpdpbusd more. The order of operations for a token does not depend on
// how many share its tile.
#include <immintrin.h>

#include <cstddef>

#define QGEMM_LANES 16
#include "kernels/qgemm/cpu/float-inl.h"
#include "kernels/qgemm/cpu/input-inl.h"
#include "kernels/qgemm/cpu/quant-inl.h"
#include "kernels/qgemm/params.h"

namespace longspur::kernels::qgemm {
namespace {

// How far ahead of a stream of weights to prefetch: memory latency at one core's bandwidth is about
// 3 KB; 8 KB was best of 0.5 to 16 KB.
constexpr int64_t kPrefetch = 8192;

// One block's weights as unsigned bytes: part j pairs with activation bytes 4j .. 4j + 3.
template <WeightKind kKind>
inline void unpack(const std::byte* block, __m512i (&w)[8]) {
  if constexpr (kKind == kQ8_0Kind) {
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) w[j] = _mm512_loadu_si512(block + 64 * j);
  } else {
    const __m512i mask = _mm512_set1_epi8(0x0f);
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      const __m512i packed = _mm512_loadu_si512(block + 64 * j);
      w[j] = _mm512_and_si512(packed, mask);
      w[j + 4] = _mm512_and_si512(_mm512_srli_epi16(packed, 4), mask);
    }
  }
}

// Adds the dot products of a block with kTokens codes to sum; the tokens take turns so that as many
// chains of vpdpbusd are in flight.
template <int kTokens>
inline void dot_block(const __m512i (&w)[8], const std::byte* codes, __m512i (&sum)[kTokens]) {
#pragma GCC unroll 8
  for (int j = 0; j < 8; ++j) {
#pragma GCC unroll 4
    for (int t = 0; t < kTokens; ++t) {
      int32_t four;
      __builtin_memcpy(&four, codes + t * kBlock + 4 * j, sizeof four);
      sum[t] = _mm512_dpbusd_epi32(sum[t], w[j], _mm512_set1_epi32(four));
    }
  }
}

inline float float_at(const std::byte* p) {
  float value;
  __builtin_memcpy(&value, p, sizeof value);
  return value;
}
inline int32_t int_at(const std::byte* p) {
  int32_t value;
  __builtin_memcpy(&value, p, sizeof value);
  return value;
}

// A block's weights with its scales, and where the codes of a piece of tokens lie.
struct Block {
  __m512i w[8];
  __m512 d, m;
};
struct TokenBlock {
  const std::byte* scale;
  const std::byte* codes;
  const std::byte* peaks;
  int64_t offset;  // from scale
  int64_t low;     // from codes
};

// Where a token's peak finds its part of a block's weights: in the block itself for 8 bits, else in
// a copy of the unpacked parts (registers cannot be indexed), or unpacked again for a single token.
template <WeightKind kKind, int kTokens>
struct Parts {
  static constexpr bool kCopied = kKind != kQ8_0Kind && kTokens > 1;
  const std::byte* block;
  alignas(64) std::byte copy[kCopied ? 512 : 1];

  void set(const std::byte* at, const __m512i (&w)[8]) {
    block = at;
    if constexpr (kCopied) {
#pragma GCC unroll 8
      for (int j = 0; j < 8; ++j) _mm512_store_si512(copy + 64 * j, w[j]);
    }
  }
  __m512i operator[](int32_t part) const {
    if constexpr (kKind == kQ8_0Kind) return _mm512_loadu_si512(block + 64 * part);
    if constexpr (kCopied) return _mm512_load_si512(copy + 64 * part);
    const __m512i packed = _mm512_loadu_si512(block + 64 * (part & 3));
    return _mm512_and_si512(_mm512_srl_epi16(packed, _mm_cvtsi32_si128(part & 4)),
                            _mm512_set1_epi8(0x0f));
  }
};

template <WeightKind kKind>
inline Block load_block(const std::byte* p) {
  const auto halves = [](const std::byte* from) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
  };
  Block block;
  unpack<kKind>(p, block.w);
  const std::byte* scales = p + (kKind == kQ8_0Kind ? 512 : 256);
  block.d = halves(scales);
  if constexpr (kKind == kQ4_1Kind) block.m = halves(scales + 32);
  return block;
}

// Adds a block times kTokens tokens to their sums.
template <WeightKind kKind, bool kTwo, int kTokens, class PartsOf>
inline void add_block(const Block& block, const PartsOf& parts, const TokenBlock& x, __m512* sum) {
  __m512i dot[kTokens];
#pragma GCC unroll 4
  for (int t = 0; t < kTokens; ++t)
    dot[t] = kKind == kQ4_1Kind ? _mm512_setzero_si512()
                                : _mm512_set1_epi32(int_at(x.scale + x.offset + 4 * t));
  if constexpr (kTwo) {
    __m512i upper[kTokens];
    for (int t = 0; t < kTokens; ++t) upper[t] = _mm512_setzero_si512();
    dot_block(block.w, x.codes, upper);
    dot_block(block.w, x.codes + x.low, dot);
    for (int t = 0; t < kTokens; ++t)
      dot[t] = _mm512_add_epi32(dot[t], _mm512_slli_epi32(upper[t], 7));
  } else {
    __m512i upper[kTokens];
#pragma GCC unroll 4
    for (int t = 0; t < kTokens; ++t) {
      const std::byte* peak = x.peaks + t * int(sizeof(Peak));
      const __m512i w = parts[int_at(peak + offsetof(Peak, part))];
      upper[t] = _mm512_dpbusd_epi32(_mm512_setzero_si512(), w, _mm512_set1_epi32(int_at(peak)));
    }
    dot_block(block.w, x.codes, dot);
#pragma GCC unroll 4
    for (int t = 0; t < kTokens; ++t)
      dot[t] = _mm512_add_epi32(dot[t], _mm512_slli_epi32(upper[t], 7));
  }
#pragma GCC unroll 4
  for (int t = 0; t < kTokens; ++t) {
    const std::byte* scale = x.scale + 4 * t;
    const __m512 ds = _mm512_mul_ps(block.d, _mm512_set1_ps(float_at(scale)));
    sum[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot[t]), ds, sum[t]);
    if constexpr (kKind == kQ4_1Kind)
      sum[t] = _mm512_fmadd_ps(block.m, _mm512_set1_ps(float_at(scale + x.offset)), sum[t]);
  }
}

struct Avx512 {
  static constexpr int kMostTokens = 16;  // 16 sums + 8 weights + 2 scales of 32 registers
  static constexpr int kFloatGroups = 2;  // 16 sums, 2 weights; 8 loads for 16 multiply-adds
  static constexpr int kFloatTokens = 8;

  struct Rows16 {
    __m512 v;
    void clear() { v = _mm512_setzero_ps(); }
    void madd(const Rows16& w, float x) { v = _mm512_fmadd_ps(w.v, _mm512_set1_ps(x), v); }
  };

  template <WeightKind kKind>
  static Rows16 load_weights(const std::byte* p) {
    if constexpr (kKind == kF32Kind) return {_mm512_loadu_ps(p)};
    const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    if constexpr (kKind == kF16Kind) return {_mm512_cvtph_ps(half)};
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16))};
  }

  static void write_rows(const ProductParams& p, const Rows16& sum, int64_t token, int64_t row) {
    const int64_t rows = p.n - row;
    const __mmask16 mask = rows >= kGroupRows ? 0xffff : __mmask16((1u << rows) - 1);
    __m512 value = sum.v;
    if (p.bias != nullptr) value = _mm512_add_ps(value, _mm512_maskz_loadu_ps(mask, p.bias + row));
    float* y = p.y + token * p.ldy + row;
    if (p.accumulate) value = _mm512_add_ps(value, _mm512_maskz_loadu_ps(mask, y));
    _mm512_mask_storeu_ps(y, mask, value);
  }

  template <WeightKind kKind, int kTokens, CodeKind kCodes>
  static void block_tile(const ProductParams& p,
                         const std::byte* weight,
                         const Piece& piece,
                         int64_t row) {
    constexpr bool kTwo = kCodes == kInt15Codes;
    constexpr int64_t kBytes = block_bytes(kKind);
    constexpr int kChains = kTokens < 4 ? kTokens : kTwo ? 2 : 4;
    const bool streaming = piece.token < kTokens;  // later tokens find the weights in cache
    TokenBlock x{piece.scale, piece.codes, piece.peaks, piece.width * 4, piece.width * kBlock};
    Parts<kKind, kTwo ? 1 : kTokens> parts;
    __m512 sum[kTokens];
#pragma GCC unroll 16
    for (int t = 0; t < kTokens; ++t) sum[t] = _mm512_setzero_ps();
    for (int64_t k = 0; k < p.k; k += kBlock, weight += kBytes) {
      if (streaming) {
#pragma GCC unroll 9
        for (int64_t line = 0; line < kBytes; line += 64)
          _mm_prefetch(weight + kPrefetch + line, _MM_HINT_T0);
      }
      const Block block = load_block<kKind>(weight);
      parts.set(weight, block.w);
#pragma GCC unroll 16
      for (int t = 0; t < kTokens; t += kChains)
        add_block<kKind, kTwo, kChains>(block, parts,
                                        {x.scale + 4 * t, x.codes + kBlock * t,
                                         x.peaks + int(sizeof(Peak)) * t, x.offset, x.low},
                                        sum + t);
      x.scale += piece.block_bytes;
      x.codes += piece.block_bytes;
      x.peaks += piece.block_bytes;
    }
#pragma GCC unroll 16
    for (int t = 0; t < kTokens; ++t) write_rows(p, {sum[t]}, piece.token + t, row);
  }
};

}  // namespace

const KernelTable kAvx512Kernels = {
    .isa = "avx512vnni",
    .input = run_input,
    .product = {quant_product<Avx512, kQ4_1Kind>, quant_product<Avx512, kQ4_0Kind>,
                quant_product<Avx512, kQ8_0Kind>, nvfp4_product_avx512,
                float_product<Avx512, kF32Kind>, float_product<Avx512, kF16Kind>,
                float_product<Avx512, kBF16Kind>},
};

}  // namespace longspur::kernels::qgemm
