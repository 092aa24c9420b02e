// Read-only view of the tensors stored in a model file or folder, whatever the format. Data is
// memory-mapped and lazily paged in; nothing is copied. Every offset was checked when the file was
// opened, so a TensorInfo's data is always inside the mapping.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/dtype.h"

namespace longspur::io {

struct TensorInfo {
  std::string name;  // as stored in the file
  DType dtype;
  std::vector<int64_t> shape;  // outermost dimension first (GGUF's order is reversed on reading)
  std::span<const std::byte> data;

  int64_t elements() const;
};

class TensorFile {
 public:
  virtual ~TensorFile() = default;
  virtual const std::string& path() const = 0;                      // as given when opened
  virtual const std::vector<TensorInfo>& tensors() const = 0;       // in file order
  virtual const TensorInfo* find(std::string_view name) const = 0;  // nullptr when absent
  virtual int64_t file_bytes() const = 0;                           // of all files together
  // Throws Error when a file was truncated or written since it was opened: to be called after the
  // data has been read, because what was read may be of either version, or zeros.
  virtual void check_unchanged() const = 0;
};

// A single .safetensors file, or a folder with model.safetensors or model.safetensors.index.json.
std::unique_ptr<TensorFile> open_safetensors(const std::string& path);

// dtype -> fp32, `elements` a whole number of blocks. src needs no alignment. UnsupportedError for
// the 6-bit and complex types, which are only listed.
void dequantize(DType dtype, const std::byte* src, int64_t elements, float* dst);

}  // namespace longspur::io
