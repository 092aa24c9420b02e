// Float products of every instruction set, fp32 fused where the unit's multiply-add is: for a group
// of 16 rows, or Isa::kFloatGroups of them, and up to Isa::kFloatTokens tokens the sums stay in
// registers over the whole of K. 16-bit weights are expanded to fp32. The unit's Isa has Rows16 (16
// floats: clear, madd by a scalar), load_weights<kind>(p) and Isa::write_rows(p, sum, token, row).
//
// bf16 dot products are not used: keeping fp32's precision of x takes two bf16 parts, and then they
// do no more multiplications an instruction than fp32 does.
#pragma once

#include "kernels/qgemm/params.h"

namespace longspur::kernels::qgemm {
namespace {

template <class Isa, WeightKind kKind, int kGroups, int kTokens>
inline void float_tile(const ProductParams& p, int64_t group, int64_t token) {
  constexpr int64_t kStep = kGroupRows * (kKind == kF32Kind ? 4 : 2);
  const float* x = reinterpret_cast<const float*>(p.activations) + token * p.float_stride;
  const std::byte* weight = p.weight + group * p.group_bytes;
  typename Isa::Rows16 sum[kTokens][kGroups];
#pragma GCC unroll 16
  for (int t = 0; t < kTokens; ++t) {
#pragma GCC unroll 4
    for (int g = 0; g < kGroups; ++g) sum[t][g].clear();
  }
  for (int64_t k = 0; k < p.k; ++k, weight += kStep) {
    typename Isa::Rows16 w[kGroups];
#pragma GCC unroll 4
    for (int g = 0; g < kGroups; ++g)
      w[g] = Isa::template load_weights<kKind>(weight + g * p.group_bytes);
#pragma GCC unroll 16
    for (int t = 0; t < kTokens; ++t) {
#pragma GCC unroll 4
      for (int g = 0; g < kGroups; ++g) sum[t][g].madd(w[g], x[t * p.float_stride + k]);
    }
  }
#pragma GCC unroll 16
  for (int t = 0; t < kTokens; ++t) {
#pragma GCC unroll 4
    for (int g = 0; g < kGroups; ++g)
      Isa::write_rows(p, sum[t][g], token + t, (group + g) * kGroupRows);
  }
}

template <class Isa, WeightKind kKind, int kGroups, int kTokens>
inline void float_tokens(const ProductParams& p,
                         int64_t group,
                         int64_t token_begin,
                         int64_t token_end) {
  int64_t token = token_begin;
  for (; token + kTokens <= token_end; token += kTokens)
    float_tile<Isa, kKind, kGroups, kTokens>(p, group, token);
  if constexpr (kTokens > 4) {
    for (; token + 4 <= token_end; token += 4) float_tile<Isa, kKind, kGroups, 4>(p, group, token);
  }
  for (; token < token_end; ++token) float_tile<Isa, kKind, kGroups, 1>(p, group, token);
}

template <class Isa, WeightKind kKind>
void float_product(const ProductParams& p,
                   int64_t group_begin,
                   int64_t group_end,
                   int64_t token_begin,
                   int64_t token_end) {
  constexpr int kGroups = Isa::kFloatGroups, kTokens = Isa::kFloatTokens;
  int64_t group = group_begin;
  // A single token is bound by memory, which one stream of weights serves best.
  if (p.t > 1) {
    for (; group + kGroups <= group_end; group += kGroups)
      float_tokens<Isa, kKind, kGroups, kTokens>(p, group, token_begin, token_end);
  }
  for (; group < group_end; ++group)
    float_tokens<Isa, kKind, 1, kTokens>(p, group, token_begin, token_end);
}

}  // namespace
}  // namespace longspur::kernels::qgemm
