#include "io/files/quantization_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "io/files/model_config.h"
#include "io/files/test_files.h"

namespace longspur::io {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using testing::refusal;
using testing::TempFolder;

Quantization read(const std::string& quantization, const std::string& hf_quant_config = "") {
  const TempFolder folder;
  const std::string member =
      quantization.empty() ? "" : R"(,"quantization_config":)" + quantization;
  folder.write("config.json",
               R"({"model_type":"llama","vocab_size":5,"hidden_size":8,"intermediate_size":16,)"
               R"("num_hidden_layers":1,"num_attention_heads":2)" +
                   member + "}");
  if (!hf_quant_config.empty()) folder.write("hf_quant_config.json", hf_quant_config);
  return model_config_from_hf(folder.path().string()).quantization;
}

TEST(QuantizationConfig, WhatIsSupported) {
  using Method = Quantization::Method;
  EXPECT_EQ(read("").method, Method::kNone);
  EXPECT_EQ(read("null").method, Method::kNone);
  for (
      const char* text : {
          R"({"quant_method":"modelopt","quant_algo":"NVFP4","ignore":["lm_head"],"group_size":16,
               "config_groups":{"group_0":{"targets":["Linear"],"weights":{"num_bits":4,"type":"float",
               "group_size":16,"dynamic":false},"input_activations":{"num_bits":4}}}})",
          R"({"quant_method":"modelopt","quant_algo":"W4A16_NVFP4"})",
          R"({"quant_method":"modelopt","quantization":{"quant_algo":"NVFP4","kv_cache_quant_algo":"FP8"}})",
          R"({"quant_method":"modelopt","quant_algo":"MIXED_PRECISION","quantized_layers":
               {"model.layers.0.mlp.up_proj":{"quant_algo":"NVFP4","group_size":16}}})"})
    EXPECT_EQ(read(text).method, Method::kModelOpt) << text;
  EXPECT_EQ(read("", R"({"producer":{"name":"modelopt"},"quantization":{"quant_algo":"NVFP4",
                        "group_size":16,"exclude_modules":["lm_head"]}})")
                .method,
            Method::kModelOpt);
  EXPECT_EQ(read(R"({"quant_method":"compressed-tensors","format":"nvfp4-pack-quantized",
                     "ignore":["lm_head"],"sparsity_config":{"format":"dense"},"transform_config":{},
                     "config_groups":{"group_0":{"format":null,"weights":{"num_bits":4,"type":"float",
                     "strategy":"tensor_group","group_size":16},"input_activations":null}}})")
                .method,
            Method::kCompressedTensors);
  const std::pair<const char*, float> kRules[] = {
      {"mse", 1536}, {"mae", 1536}, {"abs_max", 1536}, {"static_6", 2688}, {"static_4", 1792}};
  for (const auto& [rule, top] : kRules) {
    const Quantization found =
        read(std::string(R"({"quant_method":"fouroversix","dtype":"nvfp4","scale_rule":")") + rule +
             "\"}");
    EXPECT_EQ(found.method, Method::kFourOverSix);
    EXPECT_EQ(found.fouroversix_top, top);
  }
}

// One line that names what was found and what is supported.
TEST(QuantizationConfig, WhatIsNot) {
  const std::pair<const char*, const char*> kCases[] = {
      {R"({"quant_method":"fp8"})", "quant_method 'fp8'"},
      {R"({"quant_method":"mxfp4"})", "quant_method 'mxfp4'"},
      {R"({"quant_method":"gptq","bits":4})", "quant_method 'gptq'"},
      {R"({"quant_method":"modelopt","quant_algo":"FP8"})", "quant_algo: found 'FP8'"},
      {R"({"quant_method":"modelopt","quant_algo":"NVFP4_AWQ"})", "quant_algo: found 'NVFP4_AWQ'"},
      {R"({"quant_method":"modelopt","quant_algo":"NVFP4","group_size":32})",
       "group_size: found 32"},
      {R"({"quant_method":"modelopt","quant_algo":"MIXED_PRECISION"})",
       "quantized_layers: missing"},
      {R"({"quant_method":"modelopt","quant_algo":"MIXED_PRECISION","quantized_layers":
           {"a":{"quant_algo":"NVFP4"},"b":{"quant_algo":"FP8"}}})",
       "'b': quant_algo: found 'FP8'"},
      {R"({"quant_method":"compressed-tensors","format":"pack-quantized"})",
       "format: found 'pack-quantized'"},
      {R"({"quant_method":"compressed-tensors","format":"mixed-precision","config_groups":
           {"g":{"format":"float-quantized"}}})",
       "'g': format: found 'float-quantized'"},
      {R"({"quant_method":"compressed-tensors","config_groups":{"g":{"weights":{"num_bits":8}}}})",
       "num_bits: found 8"},
      {R"({"quant_method":"compressed-tensors","config_groups":{"g":{"weights":{"type":"int"}}}})",
       "type: found 'int'"},
      {R"({"quant_method":"compressed-tensors","config_groups":{"g":{"weights":{"group_size":32}}}})",
       "group_size: found 32"},
      {R"({"quant_method":"compressed-tensors","sparsity_config":{"format":"sparse-24-bitmask"}})",
       "format: found 'sparse-24-bitmask'"},
      {R"({"quant_method":"compressed-tensors","transform_config":{"config_groups":{"r":{}}}})",
       "transform_config: found transforms"},
      {R"({"quant_method":"fouroversix","dtype":"mxfp4"})", "dtype: found 'mxfp4'"},
      {R"({"quant_method":"fouroversix","scale_rule":"best"})", "scale_rule: found 'best'"},
      {R"({"quant_method":"fouroversix","scale_rule":"mse","keep_master_weights":true})",
       "keep_master_weights"},
      {R"({"quant_method":"fouroversix","scale_rule":"mse","module_config_overrides":
           {"lm_head":{"scale_rule":"static_6"}}})",
       "scale_rule: found a rule of one module's own"}};
  for (const auto& [text, message] : kCases) {
    EXPECT_THAT(refusal([&] { read(text); }), AllOf(HasSubstr("config.json"), HasSubstr(message)))
        << text;
    EXPECT_THROW(read(text), Error);
  }
  EXPECT_THAT(refusal([] { read(R"({"quant_method":"fp8"})"); }),
              HasSubstr("expected NVFP4 weights of modelopt, compressed-tensors "
                        "(nvfp4-pack-quantized) or fouroversix"));
  EXPECT_THAT(refusal([] { read("", R"({"quantization":{"quant_algo":"FP8"}})"); }),
              HasSubstr("hf_quant_config.json: quantization: quant_algo: found 'FP8'"));
  EXPECT_THAT(refusal([] { read("", "{}"); }), HasSubstr("quantization: missing"));
}

TEST(QuantizationConfig, WrongTypesAreNamed) {
  for (const char* text :
       {R"({"quant_method":7})", R"({"quant_method":"modelopt","quant_algo":[]})",
        R"({"quant_method":"modelopt","config_groups":[]})",
        R"({"quant_method":"modelopt","config_groups":{"g":1}})",
        R"({"quant_method":"compressed-tensors","config_groups":{"g":{"weights":"x"}}})",
        R"({"quant_method":"fouroversix","keep_master_weights":"no"})"})
    EXPECT_THAT(refusal([&] { read(text); }), HasSubstr("expected")) << text;
}

}  // namespace
}  // namespace longspur::io
