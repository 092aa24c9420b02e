#include "io/files/json_fields.h"

#include <cmath>
#include <limits>

#include "base/error.h"
#include "io/files/printable.h"

namespace longspur::io {

using nlohmann::json;

namespace {

// Scalars as they stand in the file; of anything larger only the type.
std::string describe(const json& value) {
  if (value.is_string()) return concat("the string ", shown(value.get_ref<const std::string&>()));
  if (value.is_number()) return "the number " + value.dump();
  if (value.is_boolean()) return value.dump();
  return std::string("an ") + value.type_name();  // array or object
}

}  // namespace

const json* JsonFields::find(const char* key) const {
  const auto found = object_->find(key);
  return found == object_->end() || found->is_null() ? nullptr : &*found;
}

std::optional<int64_t> JsonFields::integer(const char* key) const {
  const json* value = find(key);
  return value ? std::optional(to_integer(key, *value)) : std::nullopt;
}

int64_t JsonFields::integer(const char* key, int64_t fallback) const {
  return integer(key).value_or(fallback);
}

int64_t JsonFields::required_integer(const char* key) const {
  const auto value = integer(key);
  require(value.has_value(), where_, ": ", key, ": missing");
  return *value;
}

std::optional<double> JsonFields::number(const char* key) const {
  const json* value = find(key);
  if (value == nullptr) return std::nullopt;
  if (!value->is_number()) wrong(key, *value, "a number");
  return value->get<double>();
}

double JsonFields::number(const char* key, double fallback) const {
  return number(key).value_or(fallback);
}

std::optional<bool> JsonFields::boolean(const char* key) const {
  const json* value = find(key);
  if (value == nullptr) return std::nullopt;
  if (!value->is_boolean()) wrong(key, *value, "a boolean");
  return value->get<bool>();
}

bool JsonFields::boolean(const char* key, bool fallback) const {
  return boolean(key).value_or(fallback);
}

std::optional<std::string> JsonFields::text(const char* key) const {
  const json* value = find(key);
  if (value == nullptr) return std::nullopt;
  if (!value->is_string()) wrong(key, *value, "a string");
  return value->get<std::string>();
}

std::optional<JsonFields> JsonFields::object(const char* key) const {
  const json* value = find(key);
  if (value == nullptr) return std::nullopt;
  if (!value->is_object()) wrong(key, *value, "an object");
  return JsonFields(*value, where_ + ": " + key);
}

std::vector<int64_t> JsonFields::integers(const char* key) const {
  const json* value = find(key);
  if (value == nullptr) return {};
  if (!value->is_array()) return {to_integer(key, *value)};
  std::vector<int64_t> list;
  for (const json& entry : *value) list.push_back(to_integer(key, entry));
  return list;
}

std::optional<double> JsonFields::number_within(const char* key, double low, double high) const {
  const auto value = number(key);
  require(!value || (std::isfinite(*value) && *value >= low && *value <= high), where_, ": ", key,
          ": found ", value.value_or(0.0), ", expected ", low, " to ", high);
  return value;
}

std::optional<int64_t> JsonFields::integer_within(const char* key,
                                                  int64_t low,
                                                  int64_t high) const {
  const auto value = integer(key);
  require(!value || (*value >= low && *value <= high), where_, ": ", key, ": found ",
          value.value_or(0), ", expected ", low, " to ", high);
  return value;
}

void JsonFields::wrong(const char* key, const json& value, const char* expected) const {
  throw Error(concat(where_, ": ", key, ": found ", describe(value), ", expected ", expected));
}

int64_t JsonFields::to_integer(const char* key, const json& value) const {
  if (value.is_number_unsigned()) {
    const auto number = value.get<uint64_t>();
    require(number <= uint64_t(std::numeric_limits<int64_t>::max()), where_, ": ", key, ": found ",
            number, ", expected at most 2^63 - 1");
    return int64_t(number);
  }
  if (value.is_number_integer()) return value.get<int64_t>();
  wrong(key, value, "an integer");
}

}  // namespace longspur::io
