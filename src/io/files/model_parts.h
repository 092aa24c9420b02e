// How each dialect stores one tensor: the parts it needs and their bytes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "io/files/model_writer.h"

namespace longspur::io {

struct StoredPart {
  std::string name;
  DType dtype;
  std::vector<int64_t> shape;
  int64_t offset = 0;  // in the file, once it is laid out

  int64_t bytes() const;
};

// Of an NVFP4 matrix [rows, k] whose weight is called `name` in the file, in the order of
// encode_nvfp4.
std::vector<StoredPart> nvfp4_parts(
    ModelDialect dialect, const std::string& name, int64_t rows, int64_t k, bool with_input);

struct Nvfp4Encoding {
  ModelDialect dialect;
  float multiplier, input_multiplier;  // 0: of zeros, stored as 1, as readers expect a positive one
  int64_t heads;                       // GGUF's permutation of the rows (interleaved_row); 0: none
  bool with_input;
  float top;  // fouroversix: scale_top
};
// Bytes of each part; the multipliers of the matrix itself are not looked at.
std::vector<std::vector<std::byte>> encode_nvfp4(const Nvfp4Encoding& encoding,
                                                 const Nvfp4Matrix& matrix);

// Values to kF32, kBF16, kF16 or kQ8_0 (whole blocks of 32). out: dtype_bytes(dtype,
// values.size()).
void encode_values(std::span<const float> values, DType dtype, std::byte* out);

}  // namespace longspur::io
