#include "io/files/quantization_json.h"

#include <nlohmann/json.hpp>

#include "base/error.h"

namespace longspur::io {

using nlohmann::json;

namespace {

const char* algorithm(const QuantizedModules& modules) {
  return modules.with_input ? "NVFP4" : "W4A16_NVFP4";
}

json producer() { return {{"name", "longspur"}}; }

json model_opt(const QuantizedModules& modules) {
  const json format = {{"dynamic", false}, {"num_bits", 4}, {"type", "float"}, {"group_size", 16}};
  json group = {{"targets", {"Linear"}}, {"weights", format}};
  if (modules.with_input) group["input_activations"] = format;
  return {{"quant_method", "modelopt"},
          {"quant_algo", algorithm(modules)},
          {"group_size", 16},
          {"ignore", modules.ignored},
          {"config_groups", {{"group_0", group}}},
          {"producer", producer()}};
}

json hf_quant_config(const QuantizedModules& modules) {
  return {{"producer", producer()},
          {"quantization",
           {{"quant_algo", algorithm(modules)},
            {"kv_cache_quant_algo", nullptr},
            {"group_size", 16},
            {"exclude_modules", modules.ignored}}}};
}

json compressed_tensors(const QuantizedModules& modules) {
  const json weights = {{"num_bits", 4},     {"type", "float"},
                        {"symmetric", true}, {"strategy", "tensor_group"},
                        {"group_size", 16},  {"dynamic", false}};
  json group = {{"targets", {"Linear"}},
                {"weights", weights},
                {"input_activations", nullptr},
                {"output_activations", nullptr}};
  if (modules.with_input) {
    group["input_activations"] = weights;
    group["input_activations"]["dynamic"] = "local";
  }
  return {{"quant_method", "compressed-tensors"},
          {"format", "nvfp4-pack-quantized"},
          {"quantization_status", "compressed"},
          {"kv_cache_scheme", nullptr},
          {"ignore", modules.ignored},
          {"config_groups", {{"group_0", group}}}};
}

json four_over_six(const QuantizedModules& modules) {
  const bool wide = modules.scale_top == 6.0f * 448.0f;
  require(wide || modules.scale_top == 6.0f * 256.0f, "scale_top: found ", modules.scale_top,
          ", expected 1536 or 2688 for fouroversix");
  return {{"quant_method", "fouroversix"},
          {"dtype", "nvfp4"},
          {"scale_rule", wide ? "static_6" : "mse"},
          {"keep_master_weights", false},
          {"modules_to_not_convert", modules.ignored}};
}

json quantization(const QuantizedModules& modules) {
  switch (modules.dialect) {
    case ModelDialect::kModelOpt:
      return model_opt(modules);
    case ModelDialect::kCompressedTensors:
      return compressed_tensors(modules);
    case ModelDialect::kFourOverSix:
      return four_over_six(modules);
    case ModelDialect::kGguf:
      break;
  }
  throw InternalError("quantization_config: found a dialect without one");
}

}  // namespace

void write_config(json config, const QuantizedModules& modules, const WriteFile& write) {
  config.erase("quantization_config");
  if (modules.any) config["quantization_config"] = quantization(modules);
  write("config.json", config.dump(2) + "\n");
  if (modules.any && modules.dialect == ModelDialect::kModelOpt)
    write("hf_quant_config.json", hf_quant_config(modules).dump(2) + "\n");
}

}  // namespace longspur::io
