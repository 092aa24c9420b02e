// What a quality run keeps between its parts: converted models, so that a row can be measured later
// on more windows, and the figures of each row and window.
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "quant/convert.h"

namespace longspur::bench {

using ConvertedModel = std::vector<quant::ConvertedLayer>;

// A safetensors file of codes, scales, norms and biases. Matrices that were kept are only marked:
// their values are the original's, rounded to Q8_0.
void save_converted(const std::string& path, const ConvertedModel& model);
std::optional<ConvertedModel> load_converted(const std::string& path);  // nullopt: no such file

// The layer's weights as they compute; kept matrices from `original` through Q8_0.
quant::LayerWeights weights_of(const quant::ConvertedLayer& layer,
                               const quant::LayerWeights& original,
                               ThreadPool& pool);

// Rounds to Q8_0 and back: blocks of 32 along the rows, d = max|x| / 127 in fp16.
void round_q8_0(quant::Matrix& matrix);

// A JSON file that is replaced whole.
nlohmann::ordered_json read_results(const std::string& path);
void write_results(const std::string& path, const nlohmann::ordered_json& results);

}  // namespace longspur::bench
