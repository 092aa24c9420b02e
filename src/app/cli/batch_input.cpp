#include "app/cli/batch_input.h"

#include <charconv>
#include <limits>
#include <map>

#include "base/error.h"
#include "io/files/json_file.h"

namespace longspur::app::cli {

namespace {

using Json = nlohmann::ordered_json;

std::string line_name(const std::string& name, int64_t number) {
  return concat(name, " line ", number);
}

[[noreturn]] void wrong_type(const std::string& where, const Json& value, const char* expected) {
  throw Error(concat(where, ": found ", value.type_name(), ", expected ", expected));
}

int64_t to_integer(const Json& value, const std::string& where) {
  if (!value.is_number_integer()) wrong_type(where, value, "an integer");
  if (value.is_number_unsigned() &&
      value.get<uint64_t>() > uint64_t(std::numeric_limits<int64_t>::max()))
    throw Error(concat(where, ": found ", value.dump(), ", expected a smaller integer"));
  return value.get<int64_t>();
}

uint64_t to_seed(const Json& value, const std::string& where) {
  if (!value.is_number_unsigned()) wrong_type(where, value, "an integer of at least 0");
  return value.get<uint64_t>();
}

double to_number(const Json& value, const std::string& where) {
  if (!value.is_number()) wrong_type(where, value, "a number");
  return value.get<double>();
}

bool to_flag(const Json& value, const std::string& where) {
  if (!value.is_boolean()) wrong_type(where, value, "true or false");
  return value.get<bool>();
}

const std::string& to_text(const Json& value, const std::string& where) {
  if (!value.is_string()) wrong_type(where, value, "a string");
  return value.get_ref<const std::string&>();
}

int32_t to_id(const Json& value, const std::string& where) {
  const int64_t id = to_integer(value, where);
  require(id >= 0 && id <= std::numeric_limits<int32_t>::max(), where, ": found ", id,
          ", expected a token id");
  return int32_t(id);
}

std::vector<int32_t> to_ids(const Json& value, const std::string& where) {
  if (!value.is_array()) wrong_type(where, value, "a list of token ids");
  std::vector<int32_t> ids;
  for (const Json& item : value) ids.push_back(to_id(item, where));
  return ids;
}

std::vector<std::string> to_stops(const Json& value, const std::string& where) {
  if (value.is_string()) return {value.get<std::string>()};
  if (!value.is_array()) wrong_type(where, value, "a string or a list of strings");
  std::vector<std::string> stops;
  for (const Json& item : value) stops.push_back(to_text(item, where));
  return stops;
}

// {"1234": -5.0}: JSON keys are strings.
std::vector<std::pair<int32_t, double>> to_biases(const Json& value, const std::string& where) {
  if (!value.is_object()) wrong_type(where, value, "an object of id: bias");
  std::vector<std::pair<int32_t, double>> biases;
  for (const auto& [key, bias] : value.items()) {
    int32_t id = 0;
    const auto [stop, error] = std::from_chars(key.data(), key.data() + key.size(), id);
    require(error == std::errc() && stop == key.data() + key.size(), where, ": found the key '",
            key, "', expected a token id");
    biases.emplace_back(id, to_number(bias, where));
  }
  return biases;
}

Json to_messages(const Json& value, const std::string& where) {
  if (!value.is_array() || value.empty()) wrong_type(where, value, "a list of messages");
  for (const Json& message : value) {
    if (!message.is_object()) wrong_type(where, message, "objects with role and content");
    const bool role = message.contains("role") && message["role"].is_string();
    require(role, where, ": found a message without a role, expected role and content");
  }
  return value;
}

void set_prompt(BatchRequest& request, const Json& value, const std::string& where) {
  if (value.is_array()) {
    request.prompt = to_ids(value, where);
  } else if (value.is_string()) {
    require(!value.get_ref<const std::string&>().empty(), where,
            ": found an empty text, expected at least one byte");
    request.prompt = value.get<std::string>();
  } else {
    wrong_type(where, value, "a string or a list of token ids");
  }
}

using Setter = void (*)(BatchRequest&, const Json&, const std::string& where);

// Every field of a line but the id.
const std::map<std::string, Setter, std::less<>>& setters() {
  using R = BatchRequest&;
  using J = const Json&;
  using W = const std::string&;
  static const std::map<std::string, Setter, std::less<>> table = {
      {"prompt", set_prompt},
      {"messages", [](R r, J v, W w) { r.prompt = to_messages(v, w); }},
      {"max_tokens", [](R r, J v, W w) { r.sampling.max_tokens = to_integer(v, w); }},
      {"min_tokens", [](R r, J v, W w) { r.sampling.min_tokens = to_integer(v, w); }},
      {"temperature", [](R r, J v, W w) { r.sampling.temperature = to_number(v, w); }},
      {"top_k", [](R r, J v, W w) { r.sampling.top_k = to_integer(v, w); }},
      {"top_p", [](R r, J v, W w) { r.sampling.top_p = to_number(v, w); }},
      {"min_p", [](R r, J v, W w) { r.sampling.min_p = to_number(v, w); }},
      {"repetition_penalty",
       [](R r, J v, W w) { r.sampling.repetition_penalty = to_number(v, w); }},
      {"presence_penalty", [](R r, J v, W w) { r.sampling.presence_penalty = to_number(v, w); }},
      {"frequency_penalty", [](R r, J v, W w) { r.sampling.frequency_penalty = to_number(v, w); }},
      {"logit_bias", [](R r, J v, W w) { r.sampling.logit_bias = to_biases(v, w); }},
      {"seed", [](R r, J v, W w) { r.sampling.seed = to_seed(v, w); }},
      {"stop", [](R r, J v, W w) { r.sampling.stop = to_stops(v, w); }},
      {"stop_ids", [](R r, J v, W w) { r.sampling.stop_ids = to_ids(v, w); }},
      {"ignore_eos", [](R r, J v, W w) { r.sampling.ignore_eos = to_flag(v, w); }},
      {"attention_threshold",
       [](R r, J v, W w) {
         r.attention_threshold = to_number(v, w);
         validate_threshold(w.c_str(), *r.attention_threshold);
       }},
      {"logprobs", [](R r, J v, W w) { r.sampling.logprobs = to_integer(v, w); }},
  };
  return table;
}

// Depth, size and duplicate keys are checked by the reader of model files; parsed again here to
// keep the order of keys, which templates can show.
Json parse_line(std::string_view text, const std::string& where) {
  io::parse_json_object(text, where);
  return Json::parse(text);
}

BatchLine index_line(std::string_view text, int64_t number, const std::string& name) {
  BatchLine line;
  line.number = number;
  line.text = text;
  line.id = number;
  try {
    const std::string where = line_name(name, number);
    const Json object = parse_line(text, where);
    if (const auto id = object.find("id"); id != object.end()) {
      if (!id->is_string() && !id->is_number_integer())
        wrong_type(where + ": id", *id, "a string or an integer");
      line.id = *id;
    }
  } catch (const Error& error) {
    line.error = error.what();
  }
  line.key = line.id.dump();
  return line;
}

}  // namespace

std::vector<BatchLine> index_batch(std::string_view content, const std::string& name) {
  std::vector<BatchLine> lines;
  std::map<std::string, int64_t> numbers;  // of the line with an id
  int64_t number = 0;
  while (!content.empty()) {
    const size_t end = std::min(content.find('\n'), content.size());
    const std::string_view text = content.substr(0, end);
    content.remove_prefix(std::min(end + 1, content.size()));
    ++number;
    if (text.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    BatchLine line = index_line(text, number, name);
    const auto [first, fresh] = numbers.emplace(line.key, number);
    require(fresh, name, ": found id ", line.key, " in lines ", first->second, " and ", number,
            ", expected each once");
    lines.push_back(std::move(line));
  }
  require(!lines.empty(), name, ": found no lines, expected one JSON object a line");
  return lines;
}

BatchRequest parse_batch_line(const BatchLine& line,
                              const std::string& name,
                              const SamplingParams& defaults) {
  const std::string where = line_name(name, line.number);
  require(line.error.empty(), line.error);
  const Json object = parse_line(line.text, where);
  require(object.contains("prompt") != object.contains("messages"), where, ": found ",
          object.contains("prompt") ? "both prompt and messages" : "neither prompt nor messages",
          ", expected one of them");
  BatchRequest request;
  request.sampling = defaults;
  for (const auto& [field, value] : object.items()) {
    if (field == "id") continue;
    const auto setter = setters().find(field);
    require(setter != setters().end(), where, ": unknown field '", field, "'");
    setter->second(request, value, concat(where, ": ", field));
  }
  return request;
}

}  // namespace longspur::app::cli
