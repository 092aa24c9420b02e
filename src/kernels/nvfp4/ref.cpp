// Reference: the formulas of api.h, one element at a time. Compiled without contraction of
// multiplications and additions, so that every operation rounds on its own.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "base/half.h"
#include "base/rng.h"
#include "kernels/nvfp4/api.h"
#include "kernels/nvfp4/codec.h"

namespace longspur::kernels::nvfp4 {

namespace {

float element(const Source& source, int64_t row, int64_t k) {
  const int64_t at = source.transposed ? k * source.ld + row : row * source.ld + k;
  if (source.dtype == DType::kF32) return static_cast<const float*>(source.x)[at];
  const uint16_t bits = static_cast<const uint16_t*>(source.x)[at];
  return source.dtype == DType::kBF16 ? bf16_to_float(bits) : fp16_to_float(bits);
}

using Block = std::array<float, kBlock>;

Block load_block(const Source& source, bool hadamard, int64_t row, int64_t k) {
  Block block;
  for (int i = 0; i < kBlock; ++i) block[size_t(i)] = element(source, row, k + i);
  if (hadamard) hadamard16(block.data());
  return block;
}

// What one amax fixes: Enc of the block scales, and Dec of the elements.
struct Encoding {
  float amax, top, enc, dec;
};

float encode_factor(float top, float amax) {
  return amax == 0 ? 1.0f : std::min(top / amax, std::numeric_limits<float>::max());
}

Encoding encoding_of(float amax, const Recipe& recipe) {
  const float top = scale_top(recipe);
  return {amax, top, encode_factor(scale_target(recipe), amax), 1.0f / encode_factor(top, amax)};
}

float inverse(const Encoding& e, uint8_t scale) {
  const float step = e.dec * e4m3_decode(scale);
  return step == 0 ? 0.0f : std::min(1.0f / step, std::numeric_limits<float>::max());
}

float decoded(const Encoding& e, uint8_t scale, uint8_t code) {
  return e2m1_decode(code) * e4m3_decode(scale) * e.amax / e.top;
}

std::vector<uint8_t> candidates(const Recipe& recipe, float bmax, float enc) {
  if (recipe.rule == Rule::kStatic4) return {e4m3_encode(bmax / 4.0f * enc)};
  const float b = bmax / 6.0f * enc;
  const uint8_t plain = e4m3_encode(b);
  switch (recipe.rule) {
    case Rule::kFourOverSix:
      return {plain, e4m3_encode(b * 1.5f)};
    case Rule::kSweep:
    case Rule::kFullSweep: {
      const std::vector<int> offsets = recipe.rule == Rule::kSweep
                                           ? std::vector<int>{0, -1, 1, 4, 5}
                                           : std::vector<int>{0, -3, -2, -1, 1, 2, 3, 4, 5, 6, 7};
      std::vector<uint8_t> codes;
      for (const int offset : offsets)
        codes.push_back(uint8_t(std::clamp(int(plain) + offset, 0, int(kE4m3MaxCode))));
      return codes;
    }
    default:
      return {plain};
  }
}

// Error of one element as the metric counts it, added to `sum`.
float add_error(Metric metric, float sum, float difference, float weight) {
  if (metric == Metric::kMse) return sum + difference * difference * weight;
  const float size = std::fabs(difference) * weight;
  return metric == Metric::kMae ? sum + size : std::max(sum, size);
}

// The scale of a group of blocks (one, or the sixteen of a tile) that share one.
uint8_t choose_scale(const QuantizeArgs& args,
                     const Encoding& e,
                     const std::vector<Block>& blocks,
                     int64_t k) {
  float bmax = 0;
  for (const Block& block : blocks) {
    for (const float x : block) bmax = std::isfinite(x) ? std::max(bmax, std::fabs(x)) : INFINITY;
    if (std::isinf(bmax)) return kE4m3Nan;
  }
  uint8_t best = 0;
  float best_error = INFINITY;
  const std::vector<uint8_t> scales = candidates(args.recipe, bmax, e.enc);
  for (size_t i = 0; i < scales.size(); ++i) {
    const uint8_t scale = scales[i];
    const float inv = inverse(e, scale);
    float error = 0;
    for (const Block& block : blocks) {
      for (int j = 0; j < kBlock; ++j) {
        const float x = block[size_t(j)];
        const float weight = args.importance ? args.importance[k + j] : 1.0f;
        const uint8_t code = inv == 0 ? uint8_t(0) : e2m1_encode(x * inv);
        error = add_error(args.recipe.metric, error, decoded(e, scale, code) - x, weight);
      }
    }
    if (i == 0 || error < best_error) {  // the first also when its error is not finite
      best = scale;
      best_error = error;
    }
  }
  return best;
}

// To the upper neighbour with the share of the way there as probability.
uint8_t encode_stochastic(float x, uint64_t seed, uint64_t counter) {
  static constexpr float kGrid[] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6};
  const float a = std::min(std::fabs(x), kE2m1Max);
  int low = 0;
  while (low < 6 && a >= kGrid[low + 1]) ++low;
  const float u = uniform01(philox4x32(seed, 0, counter / 4)[counter % 4]);
  const float share = (a - kGrid[low]) / (kGrid[low + 1] - kGrid[low]);
  const int code = u < share ? low + 1 : low;
  return uint8_t(code == 0 ? 0 : code | (std::signbit(x) ? 8 : 0));
}

void encode_block(const QuantizeArgs& args,
                  const Encoding& e,
                  const Block& block,
                  uint8_t scale,
                  int64_t row,
                  int64_t k) {
  const int64_t columns = args.source.k;
  uint8_t* codes = args.codes + row * code_bytes(columns) + k / 2;
  args.scales[row * (columns / kBlock) + k / kBlock] = scale;
  std::memset(codes, 0, kBlock / 2);
  if (scale == kE4m3Nan) return;
  const float inv = inverse(e, scale);
  if (inv == 0) return;
  for (int i = 0; i < kBlock; ++i) {
    const float scaled = block[size_t(i)] * inv;
    const uint8_t code =
        args.recipe.rounding == Rounding::kNearest
            ? e2m1_encode(scaled)
            : encode_stochastic(scaled, args.recipe.seed, uint64_t(row * columns + k + i));
    codes[i / 2] = uint8_t(codes[i / 2] | code << (i % 2 * 4));
  }
}

void store(const DequantizeArgs& args, int64_t at, float value) {
  if (args.dtype == DType::kF32) {
    static_cast<float*>(args.out)[at] = value;
  } else {
    static_cast<uint16_t*>(args.out)[at] =
        args.dtype == DType::kBF16 ? float_to_bf16(value) : float_to_fp16(value);
  }
}

}  // namespace

void quantize_ref(const QuantizeArgs& args, int64_t begin, int64_t end) {
  const int64_t group = args.recipe.tile_2d ? kBlock : 1;
  std::vector<Block> blocks(static_cast<size_t>(group));
  for (int64_t row = begin; row < end; row += group) {
    const Encoding e = encoding_of(args.amax[args.amax_per_row ? row : 0], args.recipe);
    for (int64_t k = 0; k < args.source.k; k += kBlock) {
      for (int64_t i = 0; i < group; ++i)
        blocks[size_t(i)] = load_block(args.source, args.recipe.hadamard, row + i, k);
      const uint8_t scale = std::isfinite(e.amax) ? choose_scale(args, e, blocks, k) : kE4m3Nan;
      for (int64_t i = 0; i < group; ++i)
        encode_block(args, e, blocks[size_t(i)], scale, row + i, k);
    }
  }
}

void dequantize_ref(const DequantizeArgs& args, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const float multiplier = args.multiplier[args.multiplier_per_row ? row : 0];
    for (int64_t k = 0; k < args.k; ++k) {
      const uint8_t byte = args.codes[row * code_bytes(args.k) + k / 2];
      const float scale = e4m3_decode(args.scales[row * (args.k / kBlock) + k / kBlock] & 0x7fu);
      store(args, row * args.k + k, e2m1_decode(byte >> (k % 2 * 4) & 15) * scale * multiplier);
    }
  }
}

}  // namespace longspur::kernels::nvfp4
