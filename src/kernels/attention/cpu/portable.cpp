// The tile on plain C++: any machine; also the smallest example of what a Simd must offer.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/half.h"
#include "kernels/attention/nvfp4_page.h"
#include "kernels/attention/tile.h"

namespace longspur::kernels::attention {

namespace {

struct Simd {
  static constexpr int kWidth = 16;   // N and 64 are multiples of it
  static constexpr int kRows = 4;     // rows of C in one micro-kernel
  static constexpr int kVectors = 1;  // vectors of C in one row of it
  struct F {
    float x[kWidth];
  };
  template <class Word>
  struct B {
    const Word* words;
  };
  static float even(uint32_t w) {
    w <<= 16;
    float f;
    std::memcpy(&f, &w, 4);
    return f;
  }
  static float odd(uint32_t w) {
    w &= 0xffff0000u;
    float f;
    std::memcpy(&f, &w, 4);
    return f;
  }
  template <class Op>
  static F map(Op op) {
    F r;
    for (int i = 0; i < kWidth; ++i) r.x[i] = op(i);
    return r;
  }
  // kWidth bytes of two E2M1 codes to words of two bf16, the low nibble's value in the low half;
  // the products are exact in bf16.
  static void decode_pairs(const uint8_t* codes, const F& low, const F& high, uint32_t* out) {
    for (int i = 0; i < kWidth; ++i) {
      const float a = kE2m1[codes[i] & 15] * low.x[i], b = kE2m1[codes[i] >> 4] * high.x[i];
      uint32_t bits[2];
      std::memcpy(&bits[0], &a, 4);
      std::memcpy(&bits[1], &b, 4);
      out[i] = bits[0] >> 16 | (bits[1] & 0xffff0000u);
    }
  }
  // The same with something added to the low and to the high numbers, which rounds them (halves
  // away from zero).
  static void decode_pairs(
      const uint8_t* codes, const F& scale, const F& add_low, const F& add_high, uint32_t* out) {
    for (int i = 0; i < kWidth; ++i) {
      const float a = kE2m1[codes[i] & 15] * scale.x[i] + add_low.x[i];
      const float b = kE2m1[codes[i] >> 4] * scale.x[i] + add_high.x[i];
      uint32_t bits[2];
      std::memcpy(&bits[0], &a, 4);
      std::memcpy(&bits[1], &b, 4);
      out[i] = (bits[0] + 0x8000u) >> 16 | ((bits[1] + 0x8000u) & 0xffff0000u);
    }
  }

  static F zero() {
    return map([](int) { return 0.0f; });
  }
  static F set1(float x) {
    return map([=](int) { return x; });
  }
  static F load(const float* p) {
    return map([=](int i) { return p[i]; });
  }
  static void store(float* p, const F& v) { std::memcpy(p, v.x, sizeof(v.x)); }
  static F add(const F& a, const F& b) {
    return map([&](int i) { return a.x[i] + b.x[i]; });
  }
  static F sub(const F& a, const F& b) {
    return map([&](int i) { return a.x[i] - b.x[i]; });
  }
  static F mul(const F& a, const F& b) {
    return map([&](int i) { return a.x[i] * b.x[i]; });
  }
  static F max(const F& a, const F& b) {
    return map([&](int i) { return std::max(a.x[i], b.x[i]); });
  }
  static F exp2(const F& a) {
    return map([&](int i) { return std::exp2(a.x[i]); });
  }
  static bool any_above(const F& a, const F& b) {
    for (int i = 0; i < kWidth; ++i)
      if (a.x[i] > b.x[i]) return true;
    return false;
  }
  static float reduce_max(const F& a) { return *std::max_element(a.x, a.x + kWidth); }
  static float reduce_add(const F& a) {
    float sum = 0.0f;
    for (float x : a.x) sum += x;
    return sum;
  }
  template <class Word>
  static B<Word> load_b(const Word* p) {
    return {p};
  }
  template <class Word>
  static Word load_a(const Word* p) {
    return *p;
  }
  static F dot(const F& c, uint32_t a, const B<uint32_t>& b) {
    return map(
        [&](int i) { return c.x[i] + even(a) * even(b.words[i]) + odd(a) * odd(b.words[i]); });
  }
  static F dot(const F& c, float a, const B<float>& b) {
    return map([&](int i) { return c.x[i] + a * b.words[i]; });
  }
  static void load_halves(const uint16_t* from, int64_t n, float* to) {
    for (int64_t i = 0; i < n; ++i) to[i] = fp16_to_float(from[i]);
  }
  static void store_halves(const float* from, int64_t n, uint16_t* to) {
    for (int64_t i = 0; i < n; ++i) to[i] = float_to_fp16(from[i]);
  }
  // Stores weights at column i of a row of P; returns them as stored.
  static F store_p(float* p, int i, const F& x) {
    store(p + i, x);
    return x;
  }
  static F store_p(uint32_t* p, int i, const F& x);
};

#include "kernels/attention/cpu/step-inl.h"
// clang-format keeps this order: each body needs the one before.
#include "kernels/attention/cpu/nvfp4_page-inl.h"
//
#include "kernels/attention/cpu/attend-inl.h"
//
#include "kernels/attention/cpu/means-inl.h"
//
#include "kernels/attention/cpu/varlen-inl.h"
//
#include "kernels/attention/cpu/varlen_backward-inl.h"
//
#include "kernels/attention/cpu/scores-inl.h"

Simd::F Simd::store_p(uint32_t* p, int i, const F& x) {
  auto* halves = reinterpret_cast<uint16_t*>(p) + i;
  return map([&](int j) {
    const uint32_t bits = bf16_bits(x.x[j]);
    halves[j] = uint16_t(bits);
    return even(bits);
  });
}

constexpr KernelTable kTable = {
    "portable",
    attend<uint32_t>,
    attend<float>,
    append,
    block_means<uint32_t>,
    block_means<float>,
    {varlen_forward<float>, varlen_forward<float>, varlen_delta, varlen_backward, varlen_reduce},
    kScores};

}  // namespace

const KernelTable* table_portable() { return &kTable; }

}  // namespace longspur::kernels::attention
