// Typed look-ups in GGUF metadata. Integers widen and serve as floats; any other type than the one
// asked for is an Error that names file and key.
#include <limits>

#include "base/error.h"
#include "io/files/gguf.h"
#include "io/files/printable.h"

namespace longspur::io {

namespace {

const char* type_name(const GgufValue& value) {
  static constexpr const char* kNames[] = {"an integer",
                                           "an integer",
                                           "a number",
                                           "a boolean",
                                           "a string",
                                           "an array of integers",
                                           "an array of integers",
                                           "an array of numbers",
                                           "an array of booleans",
                                           "an array of strings"};
  return kNames[value.index()];
}

// One key of one file; value is null when the file lacks it.
struct Field {
  Field(const GgufFile& from, std::string_view wanted) : file(from), key(wanted) {
    const auto found = from.metadata().find(wanted);
    if (found != from.metadata().end()) value = &found->second;
  }

  std::string where() const { return concat(file.path(), ": key ", shown(key), ": "); }
  [[noreturn]] void wrong_type(const char* expected) const {
    throw Error(concat(where(), "found ", type_name(*value), ", expected ", expected));
  }
  const Field& demanded() const {
    require(value != nullptr, where(), "missing");
    return *this;
  }

  int64_t to_int(uint64_t number) const {
    require(number <= uint64_t(std::numeric_limits<int64_t>::max()), where(), "found ", number,
            ", expected at most 2^63 - 1");
    return int64_t(number);
  }
  int64_t to_int() const {
    if (const auto* number = std::get_if<int64_t>(value)) return *number;
    if (const auto* number = std::get_if<uint64_t>(value)) return to_int(*number);
    wrong_type("an integer");
  }
  double to_float() const {
    if (const auto* number = std::get_if<double>(value)) return *number;
    if (const auto* number = std::get_if<int64_t>(value)) return double(*number);
    if (const auto* number = std::get_if<uint64_t>(value)) return double(*number);
    wrong_type("a number");
  }
  template <class T>
  const T& to(const char* expected) const {
    if (const auto* same = std::get_if<T>(value)) return *same;
    wrong_type(expected);
  }

  const GgufFile& file;
  std::string_view key;
  const GgufValue* value = nullptr;
};

}  // namespace

int64_t GgufFile::get_int(std::string_view key) const {
  return Field(*this, key).demanded().to_int();
}

int64_t GgufFile::get_int(std::string_view key, int64_t fallback) const {
  const Field field(*this, key);
  return field.value ? field.to_int() : fallback;
}

double GgufFile::get_float(std::string_view key) const {
  return Field(*this, key).demanded().to_float();
}

double GgufFile::get_float(std::string_view key, double fallback) const {
  const Field field(*this, key);
  return field.value ? field.to_float() : fallback;
}

bool GgufFile::get_bool(std::string_view key, bool fallback) const {
  const Field field(*this, key);
  return field.value ? field.to<bool>("a boolean") : fallback;
}

std::string GgufFile::get_string(std::string_view key) const {
  return Field(*this, key).demanded().to<std::string>("a string");
}

std::string GgufFile::get_string(std::string_view key, std::string fallback) const {
  const Field field(*this, key);
  return field.value ? field.to<std::string>("a string") : std::move(fallback);
}

const std::vector<std::string>* GgufFile::find_strings(std::string_view key) const {
  const Field field(*this, key);
  return field.value ? &field.to<std::vector<std::string>>("an array of strings") : nullptr;
}

std::vector<int64_t> GgufFile::get_ints(std::string_view key) const {
  const Field field(*this, key);
  if (field.value == nullptr) return {};
  const auto* list = std::get_if<std::vector<uint64_t>>(field.value);
  if (list == nullptr) return field.to<std::vector<int64_t>>("an array of integers");
  std::vector<int64_t> values;
  for (const uint64_t number : *list) values.push_back(field.to_int(number));
  return values;
}

std::vector<double> GgufFile::get_floats(std::string_view key) const {
  const Field field(*this, key);
  return field.value ? field.to<std::vector<double>>("an array of numbers") : std::vector<double>();
}

}  // namespace longspur::io
