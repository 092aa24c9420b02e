#include "kernels/qgemm/ref.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/error.h"
#include "base/half.h"

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
      out.value.push_back(e.value);
      out.magnitude.push_back(e.magnitude);
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

}  // namespace longspur::kernels::qgemm::ref
