#include "io/files/model_parts.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/error.h"
#include "base/half.h"
#include "base/shape.h"
#include "io/files/tensor_names.h"
#include "kernels/nvfp4/codec.h"

namespace longspur::io {

namespace codec = kernels::nvfp4;

namespace {

using Bytes = std::vector<std::byte>;

constexpr int64_t kBlock = codec::kBlock;
constexpr int64_t kQ8Values = 32;

// fouroversix pads for the tiles of Blackwell's matrix instructions.
struct Padded {
  Padded(int64_t matrix_rows, int64_t matrix_k)
      : rows(round_up(matrix_rows, 128)), k(round_up(matrix_k, 64)) {}
  int64_t rows, k;
};

std::string base_of(const std::string& name) {
  constexpr std::string_view kWeight = "weight";
  require(name.ends_with(kWeight), "tensor ", name, ": expected the name of a weight");
  return name.substr(0, name.size() - kWeight.size());
}

Bytes bytes_of(const void* from, size_t count) {
  Bytes bytes(count);
  if (count > 0) std::memcpy(bytes.data(), from, count);
  return bytes;
}
Bytes bytes_of(const std::vector<uint8_t>& values) {
  return bytes_of(values.data(), values.size());
}
Bytes bytes_of(float value) { return bytes_of(&value, sizeof(value)); }

Bytes gguf_blocks(const Nvfp4Matrix& m, int64_t heads) {
  const int64_t row_bytes = dtype_bytes(DType::kNVFP4, m.k);
  Bytes blocks(size_t(m.rows * row_bytes));
  for (int64_t row = 0; row < m.rows; ++row)
    to_gguf_blocks(m.codes.data() + row * m.k / 2, m.scales.data() + row * m.k / kBlock, m.k,
                   blocks.data() + interleaved_row(row, m.rows, heads) * row_bytes);
  return blocks;
}

std::vector<uint8_t> padded_rows(const std::vector<uint8_t>& from,
                                 int64_t rows,
                                 int64_t width,
                                 int64_t to_rows,
                                 int64_t to_width) {
  std::vector<uint8_t> out(size_t(to_rows * to_width), 0);
  for (int64_t row = 0; row < rows; ++row)
    std::copy_n(from.begin() + row * width, width, out.begin() + row * to_width);
  return out;
}

// The amax that gives the multiplier back when it is divided by top, if any does.
float amax_of(float multiplier, float top) {
  const float amax = multiplier * top;
  for (const float candidate : {amax, std::nextafter(amax, 0.0f), std::nextafter(amax, INFINITY)})
    if (candidate / top == multiplier) return candidate;
  return amax;
}

std::vector<Bytes> encode_fouroversix(const Nvfp4Matrix& m, float multiplier, float top) {
  const Padded padded(m.rows, m.k);
  const int64_t columns = padded.k / kBlock;
  const auto scales = padded_rows(m.scales, m.rows, m.k / kBlock, padded.rows, columns);
  std::vector<uint8_t> swizzled(size_t(codec::swizzled_scale_bytes(padded.rows, columns)));
  swizzle_scales(scales.data(), padded.rows, columns, swizzled.data());
  const int32_t metadata[] = {
      int32_t(m.rows), int32_t(m.k), int32_t(padded.rows), int32_t(padded.k), 1, 1};
  return {bytes_of(padded_rows(m.codes, m.rows, m.k / 2, padded.rows, padded.k / 2)),
          bytes_of(swizzled), bytes_of(amax_of(multiplier, top)),
          bytes_of(metadata, sizeof(metadata))};
}

void encode_q8_0(std::span<const float> values, std::byte* out) {
  for (size_t at = 0; at < values.size(); at += kQ8Values) {
    const auto block = values.subspan(at, kQ8Values);
    float amax = 0.0f;
    for (const float value : block) amax = std::max(amax, std::fabs(value));
    const float d = amax / 127.0f, inverse = d > 0.0f ? 1.0f / d : 0.0f;
    const uint16_t bits = float_to_fp16(d);
    std::memcpy(out, &bits, sizeof(bits));
    for (size_t i = 0; i < size_t(kQ8Values); ++i)
      out[2 + i] = std::byte(int8_t(std::round(block[i] * inverse)));
    out += 2 + kQ8Values;
  }
}

}  // namespace

int64_t StoredPart::bytes() const {
  int64_t count = 1;
  for (const int64_t size : shape) count *= size;
  return dtype_bytes(dtype, count);
}

std::vector<StoredPart> nvfp4_parts(
    ModelDialect dialect, const std::string& name, int64_t rows, int64_t k, bool with_input) {
  const std::string base = base_of(name);
  const Padded padded(rows, k);
  const auto input = [&](std::vector<StoredPart> parts, const char* part) {
    if (with_input) parts.push_back({base + part, DType::kF32, {1}});
    return parts;
  };
  switch (dialect) {
    case ModelDialect::kModelOpt:
      return input({{name, DType::kU8, {rows, k / 2}},
                    {base + "weight_scale", DType::kF8E4M3, {rows, k / kBlock}},
                    {base + "weight_scale_2", DType::kF32, {}}},
                   "input_scale");
    case ModelDialect::kCompressedTensors:
      return input({{base + "weight_packed", DType::kU8, {rows, k / 2}},
                    {base + "weight_scale", DType::kF8E4M3, {rows, k / kBlock}},
                    {base + "weight_global_scale", DType::kF32, {1}}},
                   "input_global_scale");
    case ModelDialect::kFourOverSix:
      return {{base + "quantized_weight_values", DType::kU8, {padded.rows, padded.k / 2}},
              {base + "quantized_weight_scale_factors",
               DType::kF8E4M3,
               {codec::swizzled_scale_bytes(padded.rows, padded.k / kBlock)}},
              {base + "quantized_weight_amax", DType::kF32, {1}},
              {base + "quantized_weight_metadata", DType::kI32, {6}}};
    case ModelDialect::kGguf:
      return input({{name, DType::kNVFP4, {rows, k}}, {base + "scale", DType::kF32, {1}}},
                   "input_scale");
  }
  throw InternalError("nvfp4_parts: found a value outside the enum");
}

std::vector<Bytes> encode_nvfp4(const Nvfp4Encoding& encoding, const Nvfp4Matrix& m) {
  const auto positive = [](float multiplier) { return multiplier > 0.0f ? multiplier : 1.0f; };
  const float multiplier = positive(encoding.multiplier);
  const ModelDialect dialect = encoding.dialect;
  const auto direction = dialect == ModelDialect::kCompressedTensors ? ScaleDirection::kDivisor
                                                                     : ScaleDirection::kMultiplier;
  std::vector<Bytes> parts;
  if (dialect == ModelDialect::kFourOverSix) return encode_fouroversix(m, multiplier, encoding.top);
  if (dialect == ModelDialect::kGguf) {
    parts = {gguf_blocks(m, encoding.heads)};
  } else {
    parts = {bytes_of(m.codes), bytes_of(m.scales)};
  }
  parts.push_back(bytes_of(stored_scale(multiplier, direction)));
  if (encoding.with_input)
    parts.push_back(bytes_of(stored_scale(positive(encoding.input_multiplier), direction)));
  return parts;
}

void encode_values(std::span<const float> values, DType dtype, std::byte* out) {
  const auto halves = [&](auto convert) {
    for (size_t i = 0; i < values.size(); ++i) {
      const uint16_t bits = convert(values[i]);
      std::memcpy(out + 2 * i, &bits, sizeof(bits));
    }
  };
  switch (dtype) {
    case DType::kF32:
      if (!values.empty()) std::memcpy(out, values.data(), values.size_bytes());
      return;
    case DType::kBF16:
      return halves(float_to_bf16);
    case DType::kF16:
      return halves(float_to_fp16);
    case DType::kQ8_0:
      return encode_q8_0(values, out);
    default:
      throw UnsupportedError(concat(dtype_info(dtype).name,
                                    ": cannot be written, expected F32, "
                                    "BF16, F16, Q8_0 or NVFP4"));
  }
}

}  // namespace longspur::io
