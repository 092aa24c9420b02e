#include "kernels/qgemm/nvfp4_input.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "base/shape.h"
#include "kernels/nvfp4/codec.h"

namespace longspur::kernels::qgemm {

namespace {

constexpr int64_t kAlign = 64;
constexpr int64_t kBlockBytes = activation_block_bytes(kNvfp4Kind, kNvfp4Codes);

// Twice the values of a byte's two codes, low nibble first, and their sum.
struct Pair {
  int8_t value[2];
  int16_t sum;
};
std::array<Pair, 256> make_pairs() {
  std::array<Pair, 256> pairs{};
  for (uint32_t byte = 0; byte < 256; ++byte) {
    const int low = nvfp4::e2m1_twice(byte & 15u), high = nvfp4::e2m1_twice(byte >> 4);
    pairs[byte] = {{int8_t(low), int8_t(high)}, int16_t(low + high)};
  }
  return pairs;
}
const std::array<Pair, 256> kPairs = make_pairs();

// Writes 16 codes as bytes; returns what the weights' zero point takes off their dot product.
int32_t expand(const uint8_t* codes, std::byte* out) {
  int32_t sum = 0;
  for (int64_t i = 0; i < kHalf / 2; ++i) {
    const Pair& pair = kPairs[codes[i]];
    std::memcpy(out + 2 * i, pair.value, sizeof pair.value);
    sum += pair.sum;
  }
  return -12 * sum;
}

void write_token(const Nvfp4Input& in, int64_t token) {
  const int64_t first = token / kTileTokens * kTileTokens;
  const int64_t width = std::min(in.t - first, kTileTokens), column = token - first;
  std::byte* block = in.tiles + first * (in.k / kBlock) * kBlockBytes;
  const uint8_t* codes = in.codes + token * nvfp4::code_bytes(in.k);
  const uint8_t* scales = in.scales + token * (in.k / kHalf);
  for (int64_t k = 0; k < in.k; k += kBlock, block += width * kBlockBytes) {
    for (int64_t half = 0; half < 2; ++half, codes += kHalf / 2) {
      std::byte* header = block + column * 4 + half * width * 4;
      const float scale = 0.5f * nvfp4::e4m3_decode(*scales++);
      std::byte* bytes = block + width * 16 + column * kBlock + half * kHalf;
      const int32_t offset = expand(codes, bytes);
      std::memcpy(header, &scale, sizeof scale);
      std::memcpy(header + width * 8, &offset, sizeof offset);
    }
  }
}

}  // namespace

Nvfp4Input nvfp4_input(std::byte* base, int64_t t, int64_t k, int64_t stride) {
  std::byte* at = base;
  const auto take = [&](int64_t bytes) {
    std::byte* part = at;
    at += round_up(bytes, kAlign);
    return part;
  };
  Nvfp4Input in;
  in.tiles = take(t * (k / kBlock) * kBlockBytes);
  in.multiplier = reinterpret_cast<float*>(take(t * int64_t(sizeof(float))));
  in.rows = reinterpret_cast<float*>(take(t * stride * int64_t(sizeof(float))));
  in.amax = reinterpret_cast<float*>(take(t * int64_t(sizeof(float))));
  in.codes = reinterpret_cast<uint8_t*>(take(t * nvfp4::code_bytes(k)));
  in.scales = reinterpret_cast<uint8_t*>(take(t * (k / kHalf)));
  in.t = t;
  in.k = k;
  in.stride = stride;
  return in;
}

int64_t nvfp4_input_bytes(int64_t t, int64_t k, int64_t stride) {
  const int64_t token = k / kBlock * kBlockBytes + nvfp4::code_bytes(k) + k / kHalf +
                        (stride + 2) * int64_t(sizeof(float));
  return round_up(t * token, kAlign) + 6 * kAlign;  // each of the six parts may be padded
}

void encode_nvfp4(const Nvfp4Input& in, nvfp4::Rule rule, int64_t begin, int64_t end) {
  nvfp4::QuantizeArgs args;
  args.source = {.x = in.rows, .dtype = DType::kF32, .rows = in.t, .k = in.k, .ld = in.stride};
  args.amax = in.amax;
  args.amax_per_row = true;
  args.recipe.rule = rule;
  args.codes = in.codes;
  args.scales = in.scales;
  nvfp4::max_magnitude(args.source, false, begin, end, in.amax + begin);
  nvfp4::quantize(args, begin, end);
  for (int64_t token = begin; token < end; ++token) {
    in.multiplier[token] = nvfp4::tensor_scale(in.amax[token], args.recipe);
    write_token(in, token);
  }
}

}  // namespace longspur::kernels::qgemm
