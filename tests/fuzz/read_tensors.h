// What every fuzz target of a tensor format does with a file that was accepted.
#pragma once

#include <cstdlib>
#include <vector>

#include "base/error.h"
#include "io/files/tensor_file.h"

namespace longspur::fuzz {

// A broken promise ends the process: that is what the fuzzer looks for.
inline void promise(bool kept) {
  if (!kept) std::abort();
}

// Values of all tensors, from copies of their exact size, so that the sanitizer sees a read beyond.
inline void read_tensors(const io::TensorFile& file) {
  for (const io::TensorInfo& tensor : file.tensors()) {
    promise(file.find(tensor.name) == &tensor);
    promise(tensor.elements() >= 0);
    promise(int64_t(tensor.data.size()) <= file.file_bytes());
    promise(dtype_bytes(tensor.dtype, tensor.elements()) == int64_t(tensor.data.size()));
    const std::vector<std::byte> copy(tensor.data.begin(), tensor.data.end());
    std::vector<float> values(size_t(tensor.elements()));
    try {
      io::dequantize(tensor.dtype, copy.data(), tensor.elements(), values.data());
    } catch (const UnsupportedError&) {  // types that are only listed
    }
  }
}

}  // namespace longspur::fuzz
