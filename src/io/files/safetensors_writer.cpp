#include "io/files/safetensors_writer.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <utility>

#include "base/error.h"
#include "base/shape.h"
#include "io/files/checked.h"
#include "io/files/printable.h"

namespace longspur::io {

namespace {

[[noreturn]] void fail(const std::string& path, const char* what) {
  throw Error(concat(path, ": ", what, ": ", std::strerror(errno)));
}

int64_t bytes_of(const TensorToWrite& tensor) {
  const std::string where = concat("tensor ", shown(tensor.name));
  const DTypeInfo& info = dtype_info(tensor.dtype);
  require(info.block == 1, where, ": ", info.name, " cannot be stored in safetensors");
  std::optional<int64_t> bytes = info.bytes;
  for (const int64_t size : tensor.shape) {
    require(size >= 0, where, ": shape: found ", size, ", expected at least 0");
    if (bytes) bytes = checked_multiply(*bytes, size);
  }
  require(bytes.has_value(), where, ": shape: the product of its dimensions overflows");
  return *bytes;
}

std::string json_header(std::span<const TensorToWrite> tensors,
                        const Metadata& metadata,
                        int64_t& bytes) {
  std::string text = "{";
  const auto add = [&](const std::string& name, const nlohmann::ordered_json& value) {
    if (text.size() > 1) text += ',';
    text += nlohmann::json(name).dump();
    text += ':';
    text += value.dump();
  };
  if (!metadata.empty()) add("__metadata__", metadata);
  std::set<std::string_view> names;
  bytes = 0;
  for (const TensorToWrite& tensor : tensors) {
    const std::string where = concat("tensor ", shown(tensor.name));
    require(names.insert(tensor.name).second, where, ": found twice, expected once");
    require(tensor.name != "__metadata__", where, ": the name is reserved");
    require(is_utf8(tensor.name), where, ": expected a name in UTF-8");
    const auto end = checked_add(bytes, bytes_of(tensor));
    require(end.has_value(), where, ": the size of the file overflows");
    add(tensor.name, {{"dtype", dtype_info(tensor.dtype).name},
                      {"shape", tensor.shape},
                      {"data_offsets", {bytes, *end}}});
    bytes = *end;
  }
  text += "}";
  text.append(size_t(round_up(int64_t(text.size()), 8)) - text.size(), ' ');  // data starts aligned
  return text;
}

// A new file beside `path`; `name` becomes its name. Never an existing one: that may be in use, or
// left over from a process of the same id.
std::FILE* create_beside(const std::string& path, std::string& name) {
  for (int attempt = 0;; ++attempt) {
    name = concat(path, ".tmp-", getpid(), "-", attempt);
    std::FILE* file = std::fopen(name.c_str(), "wbx");
    if (file != nullptr) return file;
    if (errno != EEXIST || attempt == 1000) fail(path, "cannot be written");
  }
}

}  // namespace

std::string safetensors_header(std::span<const TensorToWrite> tensors,
                               const Metadata& metadata,
                               int64_t& data_bytes) {
  const std::string header = json_header(tensors, metadata, data_bytes);
  const uint64_t length = header.size();
  std::string text(sizeof(length), '\0');
  std::memcpy(text.data(), &length, sizeof(length));
  return text + header;
}

SafetensorsWriter::SafetensorsWriter(const std::string& path,
                                     std::span<const TensorToWrite> tensors,
                                     const Metadata& metadata)
    : path_(path) {
  const std::string header = safetensors_header(tensors, metadata, expected_);
  file_ = create_beside(path, temporary_);
  if (std::fwrite(header.data(), 1, header.size(), file_) != header.size()) {
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
  if (bytes.empty()) return;  // whose pointer may be null
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
