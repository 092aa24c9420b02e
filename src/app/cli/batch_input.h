// The lines of `generate --input x.jsonl`. Each is one JSON object:
//   {"id": "a", "prompt": "text" | [ids] | "messages": [{"role", "content"}, ...],
//    "max_tokens": 16, "temperature": 0.7, ..., "attention_threshold": 0.9}
// Without an id a line goes by its number. What is wrong with one line becomes that line's error;
// only an id that two lines share is refused for the whole file.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "request/request.h"

namespace longspur::app::cli {

struct BatchLine {
  int64_t number = 0;         // from 1
  nlohmann::ordered_json id;  // string or integer
  std::string key;            // the id as JSON text: unique in the file
  std::string_view text;      // of the line
  std::string error;          // not empty: the line is no request
};

// Blank lines are skipped. `content` must outlive the result; `name` stands for it in errors.
// Throws Error when two lines share an id, or when there is no line at all.
std::vector<BatchLine> index_batch(std::string_view content, const std::string& name);

struct BatchRequest {
  std::variant<std::string, std::vector<int32_t>, nlohmann::ordered_json> prompt;  // or messages
  SamplingParams sampling;
  std::optional<double> attention_threshold;  // of sparse attention; none: that of the options
};

// Fields that the line lacks are those of `defaults`. Throws Error that names line and field: an
// unknown field, a wrong type, no prompt or two.
BatchRequest parse_batch_line(const BatchLine& line,
                              const std::string& name,
                              const SamplingParams& defaults);

}  // namespace longspur::app::cli
