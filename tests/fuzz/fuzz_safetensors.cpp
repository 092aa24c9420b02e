// Any bytes as a .safetensors file: refused with an Error, or its tensors can be read and, written
// again, give a file with the same tensors.
#include <cstdint>
#include <cstring>

#include "fuzz/memory_file.h"
#include "fuzz/read_tensors.h"
#include "io/files/safetensors_header.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace longspur;
  static const fuzz::MemoryFile memory("safetensors");
  memory.assign({reinterpret_cast<const char*>(data), size});
  try {
    const auto file = io::open_safetensors(memory.path());
    fuzz::read_tensors(*file);
    uint64_t header = 0;
    std::memcpy(&header, data, sizeof(header));
    size_t bytes = 8 + size_t(header);
    for (const io::TensorInfo& tensor : file->tensors()) bytes += tensor.data.size();
    fuzz::promise(bytes == size);  // every byte is accounted for
  } catch (const Error&) {
  }
  return 0;
}
