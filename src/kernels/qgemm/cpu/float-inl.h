// Float products of every instruction set, fp32 fused where the unit's multiply-add is: for a group
// of 16 rows and up to Isa::kFloatTokens tokens the sums stay in registers over the whole of K.
// 16-bit weights are expanded to fp32. The unit's Isa has Rows16 (16 floats: clear, madd by a
// scalar), load_weights<kind>(p) and Isa::write_rows(p, sum, token, row).
//
// bf16 dot products are not used: keeping fp32's precision of x takes two bf16 parts, and then they
// do no more multiplications an instruction than fp32 does.
#pragma once

#include "kernels/qgemm/params.h"

namespace longspur::kernels::qgemm {
namespace {

template <class Isa, WeightKind kKind, int kTokens>
inline void float_tile(const ProductParams& p,
                       const std::byte* weight,
                       int64_t token,
                       int64_t row) {
  constexpr int64_t kStep = kGroupRows * (kKind == kF32Kind ? 4 : 2);
  const float* x = reinterpret_cast<const float*>(p.activations) + token * p.float_stride;
  typename Isa::Rows16 sum[kTokens];
#pragma GCC unroll 16
  for (int t = 0; t < kTokens; ++t) sum[t].clear();
  for (int64_t k = 0; k < p.k; ++k, weight += kStep) {
    const typename Isa::Rows16 w = Isa::template load_weights<kKind>(weight);
#pragma GCC unroll 16
    for (int t = 0; t < kTokens; ++t) sum[t].madd(w, x[t * p.float_stride + k]);
  }
#pragma GCC unroll 16
  for (int t = 0; t < kTokens; ++t) Isa::write_rows(p, sum[t], token + t, row);
}

template <class Isa, WeightKind kKind>
void float_product(const ProductParams& p,
                   int64_t group_begin,
                   int64_t group_end,
                   int64_t token_begin,
                   int64_t token_end) {
  for (int64_t group = group_begin; group < group_end; ++group) {
    const std::byte* weight = p.weight + group * p.group_bytes;
    const int64_t row = group * kGroupRows;
    int64_t token = token_begin;
    for (; token + Isa::kFloatTokens <= token_end; token += Isa::kFloatTokens)
      float_tile<Isa, kKind, Isa::kFloatTokens>(p, weight, token, row);
    for (; token + 4 <= token_end; token += 4) float_tile<Isa, kKind, 4>(p, weight, token, row);
    for (; token < token_end; ++token) float_tile<Isa, kKind, 1>(p, weight, token, row);
  }
}

}  // namespace
}  // namespace longspur::kernels::qgemm
