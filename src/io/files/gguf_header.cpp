#include "io/files/gguf_header.h"

#include <cstring>

#include "base/error.h"
#include "base/shape.h"
#include "io/files/gguf.h"
#include "io/files/printable.h"

namespace longspur::io {

namespace {

constexpr int64_t kAlignment = 32;
constexpr uint32_t kVersion = 3;

// Value types of the format.
enum : uint32_t { kU32 = 4, kI32 = 5, kF32 = 6, kBool = 7, kString = 8, kArray = 9 };

template <class T>
void put(std::string& out, T value) {
  char raw[sizeof(T)];
  std::memcpy(raw, &value, sizeof(T));
  out.append(raw, sizeof(T));
}

void put_text(std::string& out, std::string_view text) {
  put(out, uint64_t(text.size()));
  out += text;
}

}  // namespace

void GgufHeader::key(std::string_view name, uint32_t type) {
  put_text(keys_, name);
  put(keys_, type);
  ++key_count_;
}

void GgufHeader::integer(std::string_view name, uint32_t value) {
  key(name, kU32);
  put(keys_, value);
}

void GgufHeader::number(std::string_view name, float value) {
  key(name, kF32);
  put(keys_, value);
}

void GgufHeader::boolean(std::string_view name, bool value) {
  key(name, kBool);
  put(keys_, uint8_t(value));
}

void GgufHeader::string(std::string_view name, std::string_view value) {
  key(name, kString);
  put_text(keys_, value);
}

void GgufHeader::strings(std::string_view name, const std::vector<std::string>& values) {
  key(name, kArray);
  put(keys_, uint32_t(kString));
  put(keys_, uint64_t(values.size()));
  for (const std::string& value : values) put_text(keys_, value);
}

void GgufHeader::integers(std::string_view name, const std::vector<int32_t>& values) {
  key(name, kArray);
  put(keys_, uint32_t(kI32));
  put(keys_, uint64_t(values.size()));
  for (const int32_t value : values) put(keys_, value);
}

void GgufHeader::stored(std::string_view name, std::span<const std::byte> bytes) {
  put_text(keys_, name);
  keys_.append(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  ++key_count_;
}

void GgufHeader::tensor(std::string_view name,
                        const std::vector<int64_t>& shape,
                        DType dtype,
                        int64_t bytes) {
  const auto id = gguf_type_id(dtype);
  require(id.has_value(), "tensor ", shown(name), ": ", dtype_info(dtype).name,
          " cannot be stored in GGUF");
  put_text(tensors_, name);
  put(tensors_, uint32_t(shape.size()));
  for (size_t i = shape.size(); i-- > 0;) put(tensors_, uint64_t(shape[i]));
  put(tensors_, *id);
  put(tensors_, uint64_t(data_bytes_));
  starts_.push_back(data_bytes_);
  data_bytes_ = round_up(data_bytes_ + bytes, kAlignment);
}

std::string GgufHeader::finish(std::vector<int64_t>& offsets) const {
  std::string out = "GGUF";
  put(out, kVersion);
  put(out, uint64_t(starts_.size()));
  put(out, key_count_);
  out += keys_;
  out += tensors_;
  out.append(size_t(round_up(int64_t(out.size()), kAlignment)) - out.size(), '\0');
  offsets.clear();
  for (const int64_t start : starts_) offsets.push_back(int64_t(out.size()) + start);
  return out;
}

int64_t GgufHeader::file_bytes() const {
  std::vector<int64_t> offsets;
  return int64_t(finish(offsets).size()) + data_bytes_;
}

}  // namespace longspur::io
