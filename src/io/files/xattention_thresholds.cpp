#include "io/files/xattention_thresholds.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "io/files/json_fields.h"
#include "io/files/json_file.h"
#include "io/files/printable.h"

namespace longspur::io {

using nlohmann::json;

namespace {

constexpr const char* kFormat = "longspur-xattention-thresholds";
constexpr int64_t kVersion = 1;
constexpr int64_t kMostLayers = 4096, kMostHeads = 4096, kMostDim = 65536;
constexpr size_t kMostText = 1024;

void check_keys(const json& object,
                std::initializer_list<std::string_view> known,
                const std::string& where) {
  for (const auto& [key, value] : object.items())
    require(std::find(known.begin(), known.end(), key) != known.end(), where, ": found the key ",
            shown(key), ", which means nothing here");
}

std::string text_within(const JsonFields& fields, const char* key, std::string fallback) {
  std::string text = fields.text(key).value_or(std::move(fallback));
  require(text.size() <= kMostText, fields.where(), ": ", key, ": found ", text.size(),
          " bytes, expected at most ", kMostText);
  return text;
}

int64_t dimension(const JsonFields& model, const char* key, int64_t most) {
  const auto value = model.integer_within(key, 1, most);
  require(value.has_value(), model.where(), ": ", key, ": missing");
  return *value;
}

void read_model(const JsonFields& model, XattentionThresholds& table) {
  table.model_name = text_within(model, "name", "");
  table.layers = dimension(model, "layers", kMostLayers);
  table.heads = dimension(model, "heads", kMostHeads);
  table.kv_heads = dimension(model, "kv_heads", kMostHeads);
  table.head_dim = dimension(model, "head_dim", kMostDim);
  require(table.heads % table.kv_heads == 0, model.where(), ": kv_heads: found ", table.kv_heads,
          ", expected a divisor of the ", table.heads, " heads");
}

// Rows and their lengths are known to be right before anything is stored.
std::vector<float> read_matrix(const json& rows,
                               const XattentionThresholds& table,
                               const std::string& where) {
  require(int64_t(rows.size()) == table.layers, where, ": found ", rows.size(),
          " rows, expected one for each of the ", table.layers, " layers of the file's model");
  for (size_t layer = 0; layer < rows.size(); ++layer) {
    const json& row = rows[layer];
    require(row.is_array(), where, "[", layer, "]: found ", row.type_name(),
            ", expected a list of numbers");
    require(int64_t(row.size()) == table.heads, where, "[", layer, "]: found ", row.size(),
            " numbers, expected one for each of the ", table.heads, " heads of the file's model");
  }
  std::vector<float> thresholds;
  thresholds.reserve(size_t(table.layers * table.heads));
  for (size_t layer = 0; layer < rows.size(); ++layer) {
    for (size_t head = 0; head < rows[layer].size(); ++head) {
      const json& value = rows[layer][head];
      require(value.is_number(), where, "[", layer, "][", head, "]: found ", value.type_name(),
              ", expected a number from 0 to 1");
      const auto threshold = value.get<double>();
      require(threshold >= 0.0 && threshold <= 1.0, where, "[", layer, "][", head, "]: found ",
              threshold, ", expected a number from 0 to 1");
      thresholds.push_back(float(threshold));
    }
  }
  return thresholds;
}

bool read_rule(const JsonFields& fields) {
  const std::string rule = text_within(fields, "rule", "share");
  require(rule == "share" || rule == "of_max", fields.where(), ": rule: found ", shown(rule),
          ", expected share or of_max");
  return rule == "of_max";
}

// The double with the shortest text that reads back as the same float.
double shortest(float value) {
  std::array<char, 32> text{};
  const auto [end, error] = std::to_chars(text.data(), text.data() + text.size(), value);
  LONGSPUR_ASSERT(error == std::errc());
  double number = 0;
  std::from_chars(text.data(), end, number);
  return number;
}

XattentionThresholds read_table(const json& object, const std::string& name) {
  const JsonFields fields(object, name);
  const std::string format = text_within(fields, "format", "");
  require(format == kFormat, name, ": format: found ", shown(format), ", expected '", kFormat, "'");
  const int64_t version = fields.required_integer("version");
  require(version == kVersion, name, ": version: found ", version, ", expected ", kVersion);
  check_keys(
      object,
      {"format", "version", "model", "estimator", "block_size", "rule", "target", "thresholds"},
      name);
  XattentionThresholds table;
  const auto model = fields.object("model");
  require(model.has_value(), name, ": model: missing");
  check_keys(*fields.find("model"), {"name", "layers", "heads", "kv_heads", "head_dim"},
             name + ": model");
  read_model(*model, table);
  table.estimator = text_within(fields, "estimator", "");
  require(!table.estimator.empty(), name, ": estimator: missing");
  table.block_size = fields.integer("block_size", table.block_size);
  require(table.block_size == 64 || table.block_size == 128, name, ": block_size: found ",
          table.block_size, ", expected 64 or 128");
  table.of_max = read_rule(fields);
  if (fields.object("target")) table.target = fields.find("target")->dump();
  const json* rows = fields.find("thresholds");
  require(rows != nullptr, name, ": thresholds: missing");
  if (!rows->is_array()) fields.wrong("thresholds", *rows, "a list of lists of numbers");
  table.thresholds = read_matrix(*rows, table, name + ": thresholds");
  return table;
}

}  // namespace

XattentionThresholds parse_xattention_thresholds(std::string_view text, const std::string& name) {
  return read_table(parse_json_object(text, name), name);
}

XattentionThresholds read_xattention_thresholds(const std::string& path) {
  return read_table(read_json_file(path), path);
}

std::string xattention_thresholds_json(const XattentionThresholds& table) {
  LONGSPUR_ASSERT(int64_t(table.thresholds.size()) == table.layers * table.heads);
  nlohmann::ordered_json rows = nlohmann::ordered_json::array();
  for (int64_t layer = 0; layer < table.layers; ++layer) {
    auto& row = rows.emplace_back(nlohmann::ordered_json::array());
    for (int64_t head = 0; head < table.heads; ++head)
      row.push_back(shortest(table.thresholds[size_t(layer * table.heads + head)]));
  }
  const nlohmann::ordered_json object = {{"format", kFormat},
                                         {"version", kVersion},
                                         {"model",
                                          {{"name", table.model_name},
                                           {"layers", table.layers},
                                           {"heads", table.heads},
                                           {"kv_heads", table.kv_heads},
                                           {"head_dim", table.head_dim}}},
                                         {"estimator", table.estimator},
                                         {"block_size", table.block_size},
                                         {"rule", table.of_max ? "of_max" : "share"},
                                         {"target", nlohmann::ordered_json::parse(table.target)},
                                         {"thresholds", std::move(rows)}};
  // A row of numbers a line: a table to read, not a column of thousands of lines.
  std::string text = "{";
  const char* between = "\n ";
  for (const auto& [key, value] : object.items()) {
    text += between + nlohmann::json(key).dump() + ": ";
    between = ",\n ";
    if (key != "thresholds") {
      text += value.dump();
      continue;
    }
    text += "[";
    for (size_t layer = 0; layer < value.size(); ++layer)
      text += (layer == 0 ? "\n  " : ",\n  ") + value[layer].dump();
    text += "\n ]";
  }
  return text + "\n}\n";
}

void check_thresholds_fit(const XattentionThresholds& table,
                          const ModelConfig& config,
                          const std::string& name) {
  const auto check = [&](const char* what, int64_t found, int64_t expected) {
    require(found == expected, name, ": model: ", what, ": found ", found, ", expected the ",
            expected, " of model '", config.name, "': the thresholds are of another model");
  };
  check("layers", table.layers, config.layers);
  check("heads", table.heads, config.heads);
  check("kv_heads", table.kv_heads, config.kv_heads);
  check("head_dim", table.head_dim, config.head_dim);
}

}  // namespace longspur::io
