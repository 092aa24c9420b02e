#include "quant/lanes.h"

#include <algorithm>
#include <array>
#include <span>

#include "kernels/common/isa_choice.h"

namespace longspur::quant {

namespace nvfp4 = kernels::nvfp4;

namespace {

std::span<const int> offsets_of(nvfp4::Rule rule) {
  static constexpr std::array<int, 1> kPlain = {0};
  static constexpr std::array<int, 5> kSweep = {0, -1, 1, 4, 5};
  static constexpr std::array<int, 11> kFull = {0, -3, -2, -1, 1, 2, 3, 4, 5, 6, 7};
  if (rule == nvfp4::Rule::kSweep) return kSweep;
  if (rule == nvfp4::Rule::kFullSweep) return kFull;
  return kPlain;
}

}  // namespace

int candidate_count(nvfp4::Rule rule) {
  return rule == nvfp4::Rule::kFourOverSix ? 2 : int(offsets_of(rule).size());
}

uint8_t candidate_code(nvfp4::Rule rule, int index, float bmax, float enc) {
  if (rule == nvfp4::Rule::kStatic4) return nvfp4::e4m3_encode(bmax / 4.0f * enc);
  const float b = bmax / 6.0f * enc;
  if (rule == nvfp4::Rule::kFourOverSix && index == 1) return nvfp4::e4m3_encode(b * 1.5f);
  const int plain = nvfp4::e4m3_encode(b);
  if (rule == nvfp4::Rule::kFourOverSix) return uint8_t(plain);
  return uint8_t(std::clamp(plain + offsets_of(rule)[size_t(index)], 0, int(nvfp4::kE4m3MaxCode)));
}

const LaneKernels& lane_kernels() {
#if defined(__x86_64__)
  static const bool avx512 = kernels::has_avx512();
  static const bool avx2 = __builtin_cpu_supports("avx2");
  if (avx512) return kLanesAvx512;
  if (avx2) return kLanesAvx2;
#endif
  return kLanesPlain;
}

}  // namespace longspur::quant
