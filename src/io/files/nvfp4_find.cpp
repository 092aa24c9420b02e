// Which parts of a file are an NVFP4 matrix: the tensors' names, types and shapes decide, not what
// a configuration announces.
#include <array>
#include <cmath>
#include <cstring>

#include "base/error.h"
#include "base/shape.h"
#include "io/files/checked.h"
#include "io/files/nvfp4.h"
#include "kernels/nvfp4/codec.h"

namespace longspur::io {

namespace codec = kernels::nvfp4;

namespace {

constexpr std::string_view kWeight = "weight";

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

// The parts of one matrix: everything is named in full when something is wrong.
class Parts {
 public:
  Parts(const TensorFile& file, std::string base) : file_(file), base_(std::move(base)) {}

  const TensorInfo* find(const char* part) const { return file_.find(base_ + part); }

  const TensorInfo& need(const char* part, std::initializer_list<DType> types) const {
    const TensorInfo* tensor = find(part);
    require(tensor != nullptr, base_, part, " (missing, beside the NVFP4 codes)");
    std::string names;
    for (const DType type : types) {
      if (tensor->dtype == type) return *tensor;
      names += concat(names.empty() ? "" : " or ", dtype_info(type).name);
    }
    throw Error(concat(tensor->name, " (found type ", dtype_info(tensor->dtype).name, ", expected ",
                       names, ")"));
  }

  // One finite positive number of type F32.
  float scalar(const char* part) const {
    const TensorInfo* tensor = find(part);
    require(tensor != nullptr, base_, part, " (missing, beside the NVFP4 codes)");
    float value = 0.0f;
    const bool single = tensor->dtype == DType::kF32 && tensor->elements() == 1;
    if (single) std::memcpy(&value, tensor->data.data(), sizeof(value));
    require(single && std::isfinite(value) && value > 0.0f, tensor->name, " (found ",
            single ? concat(value)
                   : concat(dtype_info(tensor->dtype).name, " ", shape_text(tensor->shape)),
            ", expected one positive number of type F32)");
    return value;
  }

  // Scale of the tensor as a multiplier that can be one. Block scales are made to use what E4M3
  // offers, so that the largest is hardly below 1: with a scale in the wrong direction even that
  // gives weights that no model has.
  float multiplier(const char* part, ScaleDirection direction) const {
    const float stored = scalar(part), value = multiplier_of(stored, direction);
    require(std::isfinite(value) && value > 0.0f && codec::kE2m1Max * value <= kLargestWeight,
            base_ + part, " (found ", stored, ", expected a ",
            direction == ScaleDirection::kMultiplier ? "multiplier" : "divisor",
            " that gives weights below ", kLargestWeight,
            ": it is probably stored in the other direction)");
    return value;
  }

  // Things that would change what the codes mean and are not computed here.
  void refuse(std::initializer_list<const char*> parts) const {
    for (const char* part : parts) {
      if (find(part) != nullptr)
        throw UnsupportedError(concat(base_ + part,
                                      " (found beside NVFP4 codes, expected none: it is not "
                                      "applied)"));
    }
  }

 private:
  const TensorFile& file_;
  std::string base_;
};

void check_shape(const TensorInfo& tensor, const std::vector<int64_t>& expected) {
  require(tensor.shape == expected, tensor.name, " (found ", shape_text(tensor.shape),
          ", expected ", shape_text(expected), ")");
}

// Rows and k from codes of [rows, k / 2]; k a multiple of 16.
void set_shape(StoredNvfp4& stored) {
  const TensorInfo& codes = *stored.codes;
  require(codes.shape.size() == 2 && codes.shape[0] >= 1, codes.name, " (found the shape ",
          shape_text(codes.shape), ", expected [rows, K / 2])");
  require(codes.shape[1] >= 8 && codes.shape[1] % 8 == 0, codes.name, " (found rows of ",
          codes.shape[1], " bytes, expected a multiple of 8: blocks of 16 codes)");
  stored.rows = codes.shape[0];
  stored.k = 2 * codes.shape[1];
  stored.code_stride = codes.shape[1];
  stored.scale_columns = stored.k / codec::kBlock;
}

StoredNvfp4 model_opt(const Parts& parts) {
  StoredNvfp4 stored;
  stored.form = StoredNvfp4::Form::kModelOpt;
  stored.codes = &parts.need("weight", {DType::kU8});
  set_shape(stored);
  stored.scales = &parts.need("weight_scale", {DType::kF8E4M3, DType::kU8});
  check_shape(*stored.scales, {stored.rows, stored.scale_columns});
  stored.multiplier = parts.multiplier("weight_scale_2", ScaleDirection::kMultiplier);
  if (parts.find("input_scale")) stored.input_multiplier = parts.scalar("input_scale");
  parts.refuse({"pre_quant_scale", "weight_zero_point"});
  return stored;
}

StoredNvfp4 compressed_tensors(const Parts& parts) {
  StoredNvfp4 stored;
  stored.form = StoredNvfp4::Form::kCompressedTensors;
  stored.codes = &parts.need("weight_packed", {DType::kU8});
  set_shape(stored);
  stored.scales = &parts.need("weight_scale", {DType::kF8E4M3, DType::kU8});
  check_shape(*stored.scales, {stored.rows, stored.scale_columns});
  stored.multiplier = parts.multiplier("weight_global_scale", ScaleDirection::kDivisor);
  if (parts.find("input_global_scale"))
    stored.input_multiplier =
        multiplier_of(parts.scalar("input_global_scale"), ScaleDirection::kDivisor);
  parts.refuse({"weight_zero_point", "weight_g_idx"});
  return stored;
}

// rows, k, padded rows, padded k, 1, whether the scales are swizzled. Four numbers: they are.
std::array<int64_t, 6> metadata(const TensorInfo& tensor) {
  const int64_t count = tensor.elements();
  require(tensor.shape.size() == 1 && (count == 4 || count == 6), tensor.name, " (found the shape ",
          shape_text(tensor.shape), ", expected [6])");
  std::array<int64_t, 6> numbers{0, 0, 0, 0, 1, 1};
  for (int64_t i = 0; i < count; ++i) {
    const std::byte* from = tensor.data.data() + i * dtype_info(tensor.dtype).bytes;
    int32_t narrow = 0;
    if (tensor.dtype == DType::kI64) {
      std::memcpy(&numbers[size_t(i)], from, sizeof(int64_t));
    } else {
      std::memcpy(&narrow, from, sizeof(narrow));
      numbers[size_t(i)] = narrow;
    }
  }
  constexpr int64_t kLargest = int64_t(1) << 31;
  const auto [rows, k, padded_rows, padded_k, one, swizzled] = numbers;
  require(rows >= 1 && k >= codec::kBlock && k % codec::kBlock == 0 && padded_rows >= rows &&
              padded_k >= k && padded_k % codec::kBlock == 0 && padded_rows < kLargest &&
              padded_k < kLargest && (swizzled == 0 || swizzled == 1),
          tensor.name, " (found ", rows, ", ", k, ", ", padded_rows, ", ", padded_k, ", ", one,
          ", ", swizzled,
          ", expected rows, columns (a multiple of 16), both padded, 1, 0 or "
          "1)");
  return numbers;
}

StoredNvfp4 four_over_six(const Parts& parts, float top) {
  StoredNvfp4 stored;
  stored.form = StoredNvfp4::Form::kFourOverSix;
  stored.codes = &parts.need("quantized_weight_values", {DType::kU8});
  stored.scales = &parts.need("quantized_weight_scale_factors", {DType::kF8E4M3, DType::kU8});
  const auto [rows, k, padded_rows, padded_k, one, swizzled] =
      metadata(parts.need("quantized_weight_metadata", {DType::kI32, DType::kI64}));
  if (stored.codes->shape != std::vector{rows, k / 2})
    check_shape(*stored.codes, {padded_rows, padded_k / 2});
  stored.rows = rows;
  stored.k = k;
  stored.code_stride = stored.codes->shape[1];
  stored.scale_columns = padded_k / codec::kBlock;
  stored.swizzled = swizzled == 1;
  // both below 2^31: no overflow
  check_shape(*stored.scales,
              {stored.swizzled ? codec::swizzled_scale_bytes(padded_rows, stored.scale_columns)
                               : padded_rows * stored.scale_columns});
  const float amax = parts.scalar("quantized_weight_amax");
  if (top <= 0.0f) {
    throw UnsupportedError(concat(stored.codes->name,
                                  " (found no scale rule in the quantization_config, expected "
                                  "one: it says what the stored amax stands for)"));
  }
  stored.multiplier = amax / top;
  require(stored.multiplier > 0.0f && amax <= kLargestWeight, stored.codes->name,
          " (found an amax of ", amax, ", expected at most ", kLargestWeight, ")");
  return stored;
}

StoredNvfp4 gguf(const TensorInfo& blocks, const Parts& parts) {
  StoredNvfp4 stored;
  stored.form = StoredNvfp4::Form::kGguf;
  stored.codes = &blocks;
  require(blocks.shape.size() == 2, blocks.name, " (found the shape ", shape_text(blocks.shape),
          ", expected [rows, K])");
  stored.rows = blocks.shape[0];
  stored.k = blocks.shape[1];
  stored.code_stride = dtype_bytes(DType::kNVFP4, stored.k);
  stored.scale_columns = stored.k / codec::kBlock;
  if (parts.find("scale"))
    stored.multiplier = parts.multiplier("scale", ScaleDirection::kMultiplier);
  if (parts.find("input_scale")) stored.input_multiplier = parts.scalar("input_scale");
  return stored;
}

}  // namespace

std::optional<StoredNvfp4> find_nvfp4(const TensorFile& file,
                                      const std::string& name,
                                      float fouroversix_top) {
  if (!name.ends_with(kWeight)) return std::nullopt;
  const Parts parts(file, name.substr(0, name.size() - kWeight.size()));
  const TensorInfo* weight = file.find(name);
  const bool packed = parts.find("weight_packed"), values = parts.find("quantized_weight_values");
  require(int(weight != nullptr) + int(packed) + int(values) <= 1, name,
          " (found stored in two ways, expected one)");
  if (packed) return compressed_tensors(parts);
  if (values) return four_over_six(parts, fouroversix_top);
  if (weight == nullptr) return std::nullopt;
  if (weight->dtype == DType::kU8) return model_opt(parts);
  if (weight->dtype == DType::kNVFP4) return gguf(*weight, parts);
  // a weight with scales that nobody would apply is worse than none
  for (const char* part : {"weight_scale", "weight_scale_inv", "weight_scale_2"}) {
    if (parts.find(part) != nullptr)
      throw UnsupportedError(concat(name, " (found type ", dtype_info(weight->dtype).name,
                                    " with a ", part,
                                    " beside it, expected NVFP4 codes or a plain weight)"));
  }
  return std::nullopt;
}

}  // namespace longspur::io
