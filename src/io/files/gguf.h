// GGUF v2/v3 reader: bounded, memory-mapped; refuses every class of malformed file of
// docs/formats.md with an Error that names file, key or tensor, found and expected.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "io/files/tensor_file.h"

namespace longspur::io {

// Arrays are one level deep; nested arrays are refused. Integers widen to 64 bits.
using GgufValue = std::variant<int64_t,
                               uint64_t,
                               double,
                               bool,
                               std::string,
                               std::vector<int64_t>,
                               std::vector<uint64_t>,
                               std::vector<double>,
                               std::vector<bool>,
                               std::vector<std::string>>;

class GgufFile : public TensorFile {
 public:
  static std::unique_ptr<GgufFile> open(const std::string& path);

  virtual const std::map<std::string, GgufValue, std::less<>>& metadata() const = 0;

  // The keys in file order, each with its bytes as they stand there: value type, then value.
  struct StoredKey {
    std::string key;
    std::span<const std::byte> bytes;
  };
  virtual const std::vector<StoredKey>& stored_keys() const = 0;

  // Typed look-ups. The plain form throws Error when the key is missing or has another type
  // (numeric types convert when the value fits); the form with a default throws only on wrong type.
  int64_t get_int(std::string_view key) const;
  int64_t get_int(std::string_view key, int64_t fallback) const;
  double get_float(std::string_view key) const;
  double get_float(std::string_view key, double fallback) const;
  bool get_bool(std::string_view key, bool fallback) const;
  std::string get_string(std::string_view key) const;
  std::string get_string(std::string_view key, std::string fallback) const;
  const std::vector<std::string>* find_strings(std::string_view key) const;  // nullptr when absent
  std::vector<int64_t> get_ints(std::string_view key) const;                 // empty when absent
  std::vector<double> get_floats(std::string_view key) const;                // empty when absent
};

// The number that stands for a type in a file; nullopt for types that GGUF does not have.
std::optional<uint32_t> gguf_type_id(DType dtype);

}  // namespace longspur::io
