#include "kernels/qgemm/ref.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/error.h"
#include "base/half.h"
#include "kernels/nvfp4/codec.h"

namespace longspur::kernels::qgemm::ref {

namespace {

uint16_t bits16(const std::byte* p) {
  uint16_t bits;
  std::memcpy(&bits, p, sizeof bits);
  return bits;
}

struct Element {
  double value, magnitude;
};

double nvfp4_element(const std::byte* row, int64_t i) {
  static constexpr double kE2m1[] = {0, 0.5, 1, 1.5, 2, 3, 4, 6};
  const std::byte* block = row + i / 64 * 36;
  const int64_t sixteen = i % 64 / 16, j = i % 16;
  const int scale = int(block[sixteen]) & 0x7f, byte = int(block[4 + sixteen * 8 + j % 8]);
  const int code = j < 8 ? byte & 15 : byte >> 4;
  const double e4m3 = scale < 8 ? std::ldexp(scale, -9) : std::ldexp(8 + scale % 8, scale / 8 - 10);
  return (code & 8 ? -1 : 1) * kE2m1[code & 7] * e4m3;
}

Element element(DType dtype, const std::byte* row, int64_t i) {
  const std::byte* block = row + i / 32 * dtype_info(dtype).bytes;
  const int64_t in = i % 32;
  const auto nibble = [&](const std::byte* codes) {
    const int code = int(codes[in % 16]);
    return in < 16 ? code & 15 : code >> 4;
  };
  double value = 0;
  switch (dtype) {
    case DType::kF32: {
      float f;
      std::memcpy(&f, row + 4 * i, sizeof f);
      value = double(f);
      break;
    }
    case DType::kF16:
      value = double(fp16_to_float(bits16(row + 2 * i)));
      break;
    case DType::kBF16:
      value = double(bf16_to_float(bits16(row + 2 * i)));
      break;
    case DType::kQ8_0:
      value = double(fp16_to_float(bits16(block))) * int(int8_t(block[2 + in]));
      break;
    case DType::kQ4_0:
      value = double(fp16_to_float(bits16(block))) * (nibble(block + 2) - 8);
      break;
    case DType::kQ4_1: {
      const double dq = double(fp16_to_float(bits16(block))) * nibble(block + 4);
      const double m = double(fp16_to_float(bits16(block + 2)));
      return {dq + m, std::abs(dq) + std::abs(m)};
    }
    case DType::kNVFP4:
      value = nvfp4_element(row, i);
      break;
    default:
      throw InternalError("reference product: type without a formula");
  }
  return {value, std::abs(value)};
}

}  // namespace

Weights dequantize(const WeightRows& rows) {
  Weights out{.n = rows.n, .k = rows.k, .value = {}, .magnitude = {}};
  const int64_t row_bytes = dtype_bytes(rows.dtype, rows.k);
  for (int64_t r = 0; r < rows.n; ++r) {
    for (int64_t i = 0; i < rows.k; ++i) {
      const Element e = element(rows.dtype, rows.data + r * row_bytes, i);
      out.value.push_back(e.value * double(rows.scale));
      out.magnitude.push_back(e.magnitude * double(rows.scale));
    }
  }
  return out;
}

std::vector<double> transform(const MatmulArgs& args, int64_t k) {
  std::vector<double> out;
  for (int64_t t = 0; t < args.t; ++t) {
    const float* x = args.x + t * args.ldx;
    double square = 0;
    for (int64_t i = 0; i < k; ++i) square += double(x[i]) * double(x[i]);
    const double inverse = 1 / std::sqrt(square / double(k) + double(args.eps));
    for (int64_t i = 0; i < k; ++i) {
      const double v = double(x[i]);
      if (args.input == Input::kPlain) out.push_back(v);
      if (args.input == Input::kRmsNorm) out.push_back(v * inverse * double(args.norm_weight[i]));
      if (args.input == Input::kSwiGlu) out.push_back(v / (1 + std::exp(-v)) * double(x[k + i]));
    }
  }
  return out;
}

Codes quantize(const std::vector<double>& x, ActPrecision precision) {
  const bool peak = precision == ActPrecision::kInt8Peak;
  const float limit = peak ? 127.0f : 16256.0f;
  Codes out;
  for (size_t begin = 0; begin < x.size(); begin += 32) {
    float parts[8] = {};
    for (size_t i = 0; i < 32; ++i)
      parts[i / 4] = std::max(parts[i / 4], std::abs(float(x[begin + i])));
    std::sort(std::begin(parts), std::end(parts));
    const float largest = parts[7], top = peak ? std::max(parts[6], largest / 127.0f) : largest;
    const bool zero = largest < 1e-30f;
    const float scale = zero ? 0.0f : top / limit;
    const float inverse = zero ? 0.0f : limit / top;
    for (size_t i = begin; i < begin + 32; ++i) {
      const float scaled = float(x[i]) * inverse;
      out.value.push_back(double(std::nearbyint(scaled)) * double(scale));
      out.scale.push_back(double(scale));
    }
  }
  return out;
}

std::vector<double> quantize_nvfp4(const std::vector<float>& x, int64_t k, nvfp4::Rule rule) {
  const int64_t rows = int64_t(x.size()) / k;
  std::vector<uint8_t> codes(x.size() / 2), scales(x.size() / 16);
  std::vector<float> amax(static_cast<size_t>(rows));
  nvfp4::QuantizeArgs args;
  args.source = {.x = x.data(), .dtype = DType::kF32, .rows = rows, .k = k, .ld = k};
  args.amax = amax.data();
  args.amax_per_row = true;
  args.recipe.rule = rule;
  args.codes = codes.data();
  args.scales = scales.data();
  for (size_t i = 0; i < x.size(); ++i)
    amax[i / size_t(k)] = std::max(amax[i / size_t(k)], std::abs(x[i]));
  nvfp4::quantize_ref(args, 0, rows);
  std::vector<double> out;
  for (size_t i = 0; i < x.size(); ++i) {
    const uint32_t code = uint32_t(codes[i / 2]) >> (i % 2 * 4) & 15u;
    const float multiplier = nvfp4::tensor_scale(amax[i / size_t(k)], args.recipe);
    out.push_back(double(nvfp4::e2m1_decode(code)) * double(nvfp4::e4m3_decode(scales[i / 16])) *
                  double(multiplier));
  }
  return out;
}

}  // namespace longspur::kernels::qgemm::ref
