// Writes .safetensors files that appear whole or not at all: a temporary name in the same folder,
// then fsync and rename.
#pragma once

#include <cstdint>
#include <cstdio>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/dtype.h"

namespace longspur::io {

struct TensorToWrite {
  std::string name;
  DType dtype = DType::kF32;  // a plain type
  std::vector<int64_t> shape;
  std::span<const std::byte> data;
};
using Metadata = std::map<std::string, std::string>;

// What stands before the data: the length and the JSON header, padded so that data starts at a
// multiple of 8. data_bytes: what the tensors need together, without gaps, in this order.
std::string safetensors_header(std::span<const TensorToWrite> tensors,
                               const Metadata& metadata,
                               int64_t& data_bytes);

void write_safetensors(const std::string& path,
                       std::span<const TensorToWrite> tensors,
                       const Metadata& metadata);

// The same for data that is produced piece by piece: declare every tensor (data stays empty), then
// append their bytes in that order, then commit(). Destroyed before commit(), it leaves nothing
// behind.
class SafetensorsWriter {
 public:
  SafetensorsWriter(const std::string& path,
                    std::span<const TensorToWrite> tensors,
                    const Metadata& metadata);
  ~SafetensorsWriter();
  SafetensorsWriter(const SafetensorsWriter&) = delete;
  SafetensorsWriter& operator=(const SafetensorsWriter&) = delete;

  void append(std::span<const std::byte> bytes);
  void commit();

 private:
  std::string path_, temporary_;
  std::FILE* file_ = nullptr;
  int64_t expected_ = 0, written_ = 0;
};

}  // namespace longspur::io
