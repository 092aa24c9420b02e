// A value inside a JSON file and where it stands, so that every wrong type is an Error that says
// file, path, found and expected.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "base/error.h"

namespace longspur::io {

class JsonNode {
 public:
  JsonNode(const nlohmann::json& value, std::string where)
      : value_(&value), where_(std::move(where)) {}

  const nlohmann::json& value() const { return *value_; }
  const std::string& where() const { return where_; }

  bool is_null() const { return value_->is_null(); }
  bool is_string() const { return value_->is_string(); }
  bool is_array() const { return value_->is_array(); }
  bool is_object() const { return value_->is_object(); }
  bool has(const std::string& key) const { return is_object() && value_->contains(key); }

  // The member; null when it is absent.
  JsonNode operator[](const std::string& key) const {
    static const nlohmann::json null;
    expect(is_object(), "an object");
    const auto found = value_->find(key);
    return {found == value_->end() ? null : *found,
            where_ + (where_.ends_with(' ') ? "" : ".") + key};
  }
  JsonNode element(size_t i) const { return {(*value_)[i], concat(where_, "[", i, "]")}; }
  size_t size() const { return value_->size(); }

  const std::string& string() const {
    expect(is_string(), "a string");
    return value_->get_ref<const std::string&>();
  }
  std::string string(const std::string& fallback) const { return is_null() ? fallback : string(); }
  bool boolean() const {
    expect(value_->is_boolean(), "true or false");
    return value_->get<bool>();
  }
  bool boolean(bool fallback) const { return is_null() ? fallback : boolean(); }
  static bool is_integer(const nlohmann::json& value, int64_t low, int64_t high) {
    if (value.is_number_unsigned() && value.get<uint64_t>() > uint64_t(INT64_MAX)) return false;
    return value.is_number_integer() && value.get<int64_t>() >= low && value.get<int64_t>() <= high;
  }
  int64_t integer(int64_t low, int64_t high) const {
    if (!is_integer(*value_, low, high)) fail(concat("an integer from ", low, " to ", high));
    return value_->get<int64_t>();
  }
  const JsonNode& array() const {
    expect(is_array(), "an array");
    return *this;
  }
  const JsonNode& object() const {
    expect(is_object(), "an object");
    return *this;
  }

  void expect(bool condition, const char* expected) const {
    if (!condition) fail(expected);
  }
  [[noreturn]] void fail(const std::string& expected) const {
    throw Error(concat(where_, ": found ", describe(), ", expected ", expected));
  }
  [[noreturn]] void unsupported(const std::string& expected) const {
    throw UnsupportedError(concat(where_, ": found ", describe(), ", expected ", expected));
  }
  // The value when it is short, else its type.
  std::string describe() const {
    if (is_array() || is_object()) return concat("an ", value_->type_name());
    const std::string text = value_->dump(-1, ' ', true, nlohmann::json::error_handler_t::replace);
    return text.size() <= 80 ? text : concat("a long ", value_->type_name());
  }

 private:
  const nlohmann::json* value_;
  std::string where_;
};

}  // namespace longspur::io
