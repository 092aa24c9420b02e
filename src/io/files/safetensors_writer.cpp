#include "io/files/safetensors_writer.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/shape.h"

namespace longspur::io {

namespace {

[[noreturn]] void fail(const std::string& path, const char* what) {
  throw Error(concat(path, ": ", what, ": ", std::strerror(errno)));
}

std::string header_of(std::span<const TensorToWrite> tensors,
                      const Metadata& metadata,
                      int64_t& bytes) {
  nlohmann::ordered_json header = nlohmann::ordered_json::object();
  if (!metadata.empty()) header["__metadata__"] = metadata;
  bytes = 0;
  for (const TensorToWrite& tensor : tensors) {
    require(!header.contains(tensor.name), "tensor '", tensor.name,
            "': found twice, expected once");
    int64_t elements = 1;
    for (const int64_t size : tensor.shape) elements *= size;
    const DTypeInfo& info = dtype_info(tensor.dtype);
    require(info.block == 1, "tensor '", tensor.name, "': ", info.name,
            " cannot be stored in safetensors");
    const int64_t end = bytes + dtype_bytes(tensor.dtype, elements);
    header[tensor.name] = {
        {"dtype", info.name}, {"shape", tensor.shape}, {"data_offsets", {bytes, end}}};
    bytes = end;
  }
  std::string text = header.dump();
  text.append(size_t(round_up(int64_t(text.size()), 8)) - text.size(), ' ');  // data starts aligned
  return text;
}

}  // namespace

SafetensorsWriter::SafetensorsWriter(const std::string& path,
                                     std::span<const TensorToWrite> tensors,
                                     const Metadata& metadata)
    : path_(path), temporary_(concat(path, ".tmp-", getpid())) {
  const std::string header = header_of(tensors, metadata, expected_);
  file_ = std::fopen(temporary_.c_str(), "wbx");
  if (file_ == nullptr) fail(path, "cannot be written");
  const uint64_t length = header.size();
  if (std::fwrite(&length, sizeof(length), 1, file_) != 1 ||
      std::fwrite(header.data(), 1, header.size(), file_) != header.size()) {
    const int error = errno;
    std::fclose(file_);
    std::remove(temporary_.c_str());
    errno = error;
    fail(path, "cannot be written");
  }
}

SafetensorsWriter::~SafetensorsWriter() {
  if (file_ == nullptr) return;
  std::fclose(file_);
  std::remove(temporary_.c_str());
}

void SafetensorsWriter::append(std::span<const std::byte> bytes) {
  written_ += int64_t(bytes.size());
  LONGSPUR_ASSERT(written_ <= expected_);
  if (std::fwrite(bytes.data(), 1, bytes.size(), file_) != bytes.size())
    fail(path_, "cannot be written");
}

void SafetensorsWriter::commit() {
  LONGSPUR_ASSERT(written_ == expected_);
  if (std::fflush(file_) != 0 || fsync(fileno(file_)) != 0) fail(path_, "cannot be written");
  const bool closed = std::fclose(std::exchange(file_, nullptr)) == 0;
  if (!closed || std::rename(temporary_.c_str(), path_.c_str()) != 0) {
    const int error = errno;
    std::remove(temporary_.c_str());
    errno = error;
    fail(path_, "cannot be written");
  }
}

void write_safetensors(const std::string& path,
                       std::span<const TensorToWrite> tensors,
                       const Metadata& metadata) {
  SafetensorsWriter writer(path, tensors, metadata);
  for (const TensorToWrite& tensor : tensors) writer.append(tensor.data);
  writer.commit();
}

}  // namespace longspur::io
