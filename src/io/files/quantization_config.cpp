#include "io/files/quantization_config.h"

#include <algorithm>
#include <cctype>
#include <filesystem>

#include "base/error.h"
#include "io/files/json_fields.h"
#include "io/files/json_file.h"
#include "io/files/printable.h"

namespace longspur::io {

namespace fs = std::filesystem;
using nlohmann::json;

namespace {

constexpr const char* kSupported =
    "NVFP4 weights of modelopt, compressed-tensors (nvfp4-pack-quantized) or fouroversix";
constexpr int64_t kBlock = 16;

[[noreturn]] void unsupported(const std::string& where, const std::string& found) {
  throw UnsupportedError(concat(where, ": found ", found, ", expected ", kSupported));
}

void expect_text(const JsonFields& fields, const char* key, const std::string& expected) {
  const auto found = fields.text(key);
  if (found && *found != expected)
    unsupported(concat(fields.where(), ": ", key), concat(shown(*found)));
}

void expect_integer(const JsonFields& fields, const char* key, int64_t expected) {
  const auto found = fields.integer(key);
  if (found && *found != expected)
    unsupported(concat(fields.where(), ": ", key), std::to_string(*found));
}

bool says_something(const JsonFields& fields, const char* key) {
  const json* value = fields.find(key);
  return value != nullptr && !value->empty();
}

// "weights" of a group: 4-bit floats in groups of 16. Groups without weights are of activations.
void check_group_weights(const JsonFields& group) {
  const auto weights = group.object("weights");
  if (!weights) return;
  expect_integer(*weights, "num_bits", 4);
  expect_text(*weights, "type", "float");
  expect_integer(*weights, "group_size", kBlock);
  const auto strategy = weights->text("strategy");
  if (strategy && *strategy != "tensor_group")
    unsupported(concat(weights->where(), ": strategy"), concat(shown(*strategy)));
}

template <class Check>
void each_object(const JsonFields& fields, const char* key, Check check) {
  const json* members = fields.find(key);
  if (members == nullptr) return;
  if (!members->is_object()) fields.wrong(key, *members, "an object");
  for (const auto& [name, value] : members->items()) {
    const std::string where = concat(fields.where(), ": ", key, ": ", shown(name));
    require(value.is_object(), where, ": expected an object");
    check(JsonFields(value, where));
  }
}

// --- ModelOpt
// -------------------------------------------------------------------------------------

void check_algorithm(const JsonFields& fields) {
  const auto algorithm = fields.text("quant_algo");
  if (!algorithm) return;
  std::string upper = *algorithm;
  std::transform(upper.begin(), upper.end(), upper.begin(),
                 [](unsigned char c) { return char(std::toupper(c)); });
  if (upper != "NVFP4" && upper != "W4A16_NVFP4")
    unsupported(concat(fields.where(), ": quant_algo"), concat(shown(*algorithm)));
  expect_integer(fields, "group_size", kBlock);
}

// The members of `quantization` in hf_quant_config.json, which newer files repeat in config.json.
void check_model_opt(const JsonFields& fields) {
  const auto algorithm = fields.text("quant_algo");
  const bool mixed = algorithm && *algorithm == "MIXED_PRECISION";
  require(!mixed || says_something(fields, "quantized_layers"), fields.where(),
          ": quantized_layers: missing, expected the algorithm of each layer");
  if (!mixed) check_algorithm(fields);
  each_object(fields, "quantized_layers", check_algorithm);
  each_object(fields, "config_groups", check_group_weights);
}

// --- compressed-tensors
// ---------------------------------------------------------------------------

void check_compressed_tensors(const JsonFields& fields) {
  const auto format = fields.text("format");
  if (format && *format != "mixed-precision") expect_text(fields, "format", "nvfp4-pack-quantized");
  each_object(fields, "config_groups", [](const JsonFields& group) {
    expect_text(group, "format", "nvfp4-pack-quantized");
    check_group_weights(group);
  });
  if (const auto sparsity = fields.object("sparsity_config")) {
    expect_text(*sparsity, "format", "dense");
  }
  // rotations of activations that belong to the weights
  if (says_something(fields, "transform_config"))
    unsupported(fields.where() + ": transform_config", "transforms");
}

// --- fouroversix
// ----------------------------------------------------------------------------------

float scale_top(const JsonFields& fields, const char* key, const std::string& rule) {
  if (rule == "mse" || rule == "mae" || rule == "abs_max") return 6.0f * 256.0f;
  if (rule == "static_6") return 6.0f * 448.0f;
  if (rule == "static_4") return 4.0f * 448.0f;
  throw UnsupportedError(concat(fields.where(), ": ", key, ": found ", shown(rule),
                                ", expected mse, mae, abs_max, static_6 or static_4"));
}

float check_fouroversix(const JsonFields& fields) {
  for (const char* key : {"dtype", "weight_dtype"}) expect_text(fields, key, "nvfp4");
  // Stochastic rounding of the unbiased kind aims at other maxima.
  const auto style = fields.text("weight_round_style");
  if (style && *style != "nearest" && *style != "stochastic")
    unsupported(fields.where() + ": weight_round_style", concat(shown(*style)));
  if (fields.boolean("keep_master_weights", false))
    unsupported(fields.where() + ": keep_master_weights", "weights that are not quantised");
  each_object(fields, "module_config_overrides", [](const JsonFields& module) {
    for (const char* key : {"scale_rule", "weight_scale_rule", "dtype", "weight_dtype"})
      if (module.find(key) != nullptr)
        unsupported(module.where() + ": " + key, "a rule of one module's own");
  });
  for (const char* key : {"weight_scale_rule", "scale_rule"})
    if (const auto rule = fields.text(key)) return scale_top(fields, key, *rule);
  return 0.0f;
}

}  // namespace

Quantization read_quantization(const std::string& folder, const JsonFields& config) {
  using Method = Quantization::Method;
  Quantization quantization;
  if (const auto fields = config.object("quantization_config")) {
    const std::string method = fields->text("quant_method").value_or("");
    if (method == "modelopt") {
      quantization.method = Method::kModelOpt;
      check_model_opt(*fields);
      if (const auto nested = fields->object("quantization")) check_model_opt(*nested);
    } else if (method == "compressed-tensors") {
      quantization.method = Method::kCompressedTensors;
      check_compressed_tensors(*fields);
    } else if (method == "fouroversix") {
      quantization.method = Method::kFourOverSix;
      quantization.fouroversix_top = check_fouroversix(*fields);
    } else {
      unsupported(fields->where(), concat("quant_method ", shown(method)));
    }
  }
  const fs::path path = fs::path(folder) / "hf_quant_config.json";
  std::error_code error;
  if (!fs::exists(path, error)) return quantization;
  const json object = read_json_file(path.string());
  const JsonFields fields(object, path.string());
  const auto nested = fields.object("quantization");
  require(nested.has_value(), path.string(), ": quantization: missing");
  check_model_opt(*nested);
  if (quantization.method == Method::kNone) quantization.method = Method::kModelOpt;
  return quantization;
}

}  // namespace longspur::io
