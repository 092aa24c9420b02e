// The front of a GGUF file to be written: keys, tensors, and where each tensor's data goes.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/dtype.h"

namespace longspur::io {

class GgufHeader {
 public:
  void integer(std::string_view key, uint32_t value);
  void number(std::string_view key, float value);
  void boolean(std::string_view key, bool value);
  void string(std::string_view key, std::string_view value);
  void strings(std::string_view key, const std::vector<std::string>& values);
  void integers(std::string_view key, const std::vector<int32_t>& values);
  // value type and value, as GgufFile::StoredKey has them
  void stored(std::string_view key, std::span<const std::byte> bytes);

  // shape: outermost dimension first. Data follows in the order of the tensors.
  void tensor(std::string_view name, const std::vector<int64_t>& shape, DType dtype, int64_t bytes);

  // Everything before the data, padded; offsets[i] of tensor i are from the beginning of the file.
  std::string finish(std::vector<int64_t>& offsets) const;
  int64_t file_bytes() const;  // all of it

 private:
  void key(std::string_view name, uint32_t type);

  std::string keys_, tensors_;
  uint64_t key_count_ = 0;
  std::vector<int64_t> starts_;  // from the beginning of the data
  int64_t data_bytes_ = 0;
};

}  // namespace longspur::io
