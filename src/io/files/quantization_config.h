// What a model folder's configuration says about quantised weights: `quantization_config` of
// config.json, and ModelOpt's hf_quant_config.json. It is checked, so that a checkpoint whose
// weights would be misread is refused by name; which tensor is quantised, the tensors decide.
#pragma once

#include <string>

namespace longspur::io {

class JsonFields;

struct Quantization {
  enum class Method { kNone, kModelOpt, kCompressedTensors, kFourOverSix };
  Method method = Method::kNone;
  // fouroversix: 6 * bound of the weights' scale rule (1536, 2688 or 1792); 0: not said.
  float fouroversix_top = 0.0f;
};

// `config`: the fields of config.json. Throws UnsupportedError that says what was found and what is
// supported when it is anything but NVFP4.
Quantization read_quantization(const std::string& folder, const JsonFields& config);

}  // namespace longspur::io
