// See simd.h. exp is Highway's (1 ulp); sums are fp32 inside a block of 64 and fp64 across blocks.
#include "kernels/sampling/simd.h"

#include <algorithm>
#include <limits>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/sampling/simd.cpp"
#include <hwy/foreach_target.h>
// foreach_target.h must come first.
#include <hwy/contrib/math/math-inl.h>
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace longspur::kernels::sampling::detail {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
using D = hn::CappedTag<float, 16>;  // at most 16 lanes, so kBlock is a whole number of vectors

bool block_maxima(const float* x, int64_t n, float* block_max) {
  const D d;
  const int64_t lanes = int64_t(hn::Lanes(d));
  auto unordered = hn::FirstN(d, 0);
  const auto lowest = hn::Set(d, -std::numeric_limits<float>::infinity());
  int64_t block = 0;
  for (; (block + 1) * kBlock <= n; ++block) {
    const float* p = x + block * kBlock;
    auto best = lowest;
    for (int64_t i = 0; i < kBlock; i += lanes) {
      const auto v = hn::LoadU(d, p + i);
      best = hn::Max(best, v);
      unordered = hn::Or(unordered, hn::IsNaN(v));
    }
    block_max[block] = hn::GetLane(hn::MaxOfLanes(d, best));
  }
  bool has_nan = !hn::AllFalse(d, unordered);
  if (block * kBlock < n) {
    float best = -std::numeric_limits<float>::infinity();
    for (int64_t i = block * kBlock; i < n; ++i) {
      has_nan = has_nan || x[i] != x[i];
      best = std::max(best, x[i]);
    }
    block_max[block] = best;
  }
  return !has_nan;
}

double exp_weights(
    const float* x, int64_t n, float max, float scale, float* weights, double* block_sum) {
  const D d;
  const int64_t lanes = int64_t(hn::Lanes(d));
  const auto vmax = hn::Set(d, max);
  const auto vscale = hn::Set(d, scale);
  double total = 0.0;
  for (int64_t begin = 0, block = 0; begin < n; begin += kBlock, ++block) {
    HWY_ALIGN float padded[kBlock];
    const int64_t count = std::min(kBlock, n - begin);
    const float* in = x + begin;
    float* out = weights + begin;
    if (count < kBlock) {
      std::fill(padded, padded + kBlock, -std::numeric_limits<float>::infinity());
      std::copy(in, in + count, padded);
      in = out = padded;
    }
    auto sum = hn::Zero(d);
    for (int64_t i = 0; i < kBlock; i += lanes) {
      const auto w = hn::Exp(d, hn::Mul(hn::Sub(hn::LoadU(d, in + i), vmax), vscale));
      hn::StoreU(w, d, out + i);
      sum = hn::Add(sum, w);
    }
    if (count < kBlock) std::copy(padded, padded + count, weights + begin);
    block_sum[block] = double(hn::GetLane(hn::SumOfLanes(d, sum)));
    total += block_sum[block];
  }
  return total;
}

}  // namespace HWY_NAMESPACE
}  // namespace longspur::kernels::sampling::detail
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace longspur::kernels::sampling::detail {

HWY_EXPORT(block_maxima);
HWY_EXPORT(exp_weights);

bool block_maxima(const float* x, int64_t n, float* block_max) {
  return HWY_DYNAMIC_DISPATCH(block_maxima)(x, n, block_max);
}

double exp_weights(
    const float* x, int64_t n, float max, float scale, float* weights, double* block_sum) {
  return HWY_DYNAMIC_DISPATCH(exp_weights)(x, n, max, scale, weights, block_sum);
}

}  // namespace longspur::kernels::sampling::detail
#endif
