// Typed look-ups in a JSON object. null counts as absent, as it mostly does for transformers.
// Errors name file and key, what was found and what was expected.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

namespace longspur::io {

class JsonFields {
 public:
  JsonFields(const nlohmann::json& object, std::string where)
      : object_(&object), where_(std::move(where)) {}

  const nlohmann::json* find(const char* key) const;
  bool contains(const char* key) const { return object_->contains(key); }  // null included

  std::optional<int64_t> integer(const char* key) const;
  int64_t integer(const char* key, int64_t fallback) const;
  int64_t required_integer(const char* key) const;
  std::optional<double> number(const char* key) const;
  double number(const char* key, double fallback) const;
  std::optional<bool> boolean(const char* key) const;
  bool boolean(const char* key, bool fallback) const;
  std::optional<std::string> text(const char* key) const;
  std::optional<JsonFields> object(const char* key) const;
  std::vector<int64_t> integers(const char* key) const;  // one integer or a list of them

  // An optional number within [low, high].
  std::optional<double> number_within(const char* key, double low, double high) const;
  std::optional<int64_t> integer_within(const char* key, int64_t low, int64_t high) const;

  [[noreturn]] void wrong(const char* key, const nlohmann::json& value, const char* expected) const;
  const std::string& where() const { return where_; }

 private:
  int64_t to_integer(const char* key, const nlohmann::json& value) const;

  const nlohmann::json* object_;
  std::string where_;
};

}  // namespace longspur::io
