// GGUF v2/v3. Layout: magic, version, tensor count, key/value count; key/value pairs; tensor
// headers; padding to the alignment; tensor data. Every count is bounded by the bytes that are left
// before anything is allocated from it, every size is computed with overflow checks, and every
// tensor is shown to lie inside the file and to overlap no other.
#include "io/files/gguf.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>

#include "base/error.h"
#include "base/shape.h"
#include "io/files/checked.h"
#include "io/files/mapped_file.h"
#include "io/files/tensor_table.h"

namespace longspur::io {

namespace {

constexpr uint64_t kMaxKeys = 1 << 16;
constexpr uint64_t kMaxTensors = 1 << 20;
constexpr uint64_t kMaxNameBytes = 1024;
constexpr uint64_t kMaxStringBytes = uint64_t(64) << 20;
constexpr int64_t kMaxAlignment = 1 << 20;
constexpr uint64_t kMaxDims = 4;
constexpr int64_t kDefaultAlignment = 32;

enum ValueType : uint32_t {
  kU8,
  kI8,
  kU16,
  kI16,
  kU32,
  kI32,
  kF32,
  kBool,
  kString,
  kArray,
  kU64,
  kI64,
  kF64,
  kValueTypes
};

// Reads forward through the header; any read past the end is an Error that says what was read.
class Cursor {
 public:
  Cursor(std::span<const std::byte> bytes, const std::string& path) : bytes_(bytes), path_(path) {}

  template <class T>
  T read(const char* what) {
    need(sizeof(T), what);
    T value;
    std::memcpy(&value, bytes_.data() + at_, sizeof(T));
    at_ += sizeof(T);
    return value;
  }

  std::string string(const char* what, uint64_t limit) {
    const auto length = read<uint64_t>(what);
    require(length <= limit, path_, ": ", what, ": found a string of ", length,
            " bytes, expected at most ", limit);
    need(length, what);
    std::string value(reinterpret_cast<const char*>(bytes_.data() + at_), size_t(length));
    at_ += size_t(length);
    return value;
  }

  void need(uint64_t count, const char* what) const {
    require(count <= left(), path_, ": truncated: ", what, " needs ", count, " bytes, found ",
            left());
  }
  uint64_t left() const { return bytes_.size() - at_; }
  int64_t position() const { return int64_t(at_); }

 private:
  std::span<const std::byte> bytes_;
  const std::string& path_;
  size_t at_ = 0;
};

DType tensor_dtype(uint32_t id, const std::string& path, const std::string& name) {
  switch (id) {
    case 0:
      return DType::kF32;
    case 1:
      return DType::kF16;
    case 2:
      return DType::kQ4_0;
    case 3:
      return DType::kQ4_1;
    case 6:
      return DType::kQ5_0;
    case 7:
      return DType::kQ5_1;
    case 8:
      return DType::kQ8_0;
    case 12:
      return DType::kQ4_K;
    case 13:
      return DType::kQ5_K;
    case 14:
      return DType::kQ6_K;
    case 24:
      return DType::kI8;
    case 25:
      return DType::kI16;
    case 26:
      return DType::kI32;
    case 27:
      return DType::kI64;
    case 28:
      return DType::kF64;
    case 30:
      return DType::kBF16;
    case 40:
      return DType::kNVFP4;
    default:
      throw UnsupportedError(
          concat(path, ": tensor '", name, "': found type id ", id,
                 ", expected F32, F16, BF16, F64, I8 to I64, Q8_0, Q4_0, Q4_1, Q5_0, "
                 "Q5_1, Q4_K, Q5_K, Q6_K or NVFP4"));
  }
}

class GgufReader final : public GgufFile {
 public:
  explicit GgufReader(const std::string& path) : file_(path) {
    Cursor cursor(file_.bytes(), file_.path());
    read_header(cursor);
    for (uint64_t i = 0; i < keys_; ++i) read_pair(cursor);
    for (uint64_t i = 0; i < tensor_count_; ++i) read_tensor(cursor);
    place_tensors(cursor);
  }

  const std::vector<TensorInfo>& tensors() const override { return table_.tensors(); }
  const TensorInfo* find(std::string_view name) const override { return table_.find(name); }
  int64_t file_bytes() const override { return int64_t(file_.bytes().size()); }
  const std::map<std::string, GgufValue, std::less<>>& metadata() const override {
    return metadata_;
  }

 private:
  const std::string& path() const { return file_.path(); }

  void read_header(Cursor& cursor) {
    const auto magic = cursor.read<uint32_t>("magic");
    require(magic == 0x46554747u, path(),
            ": found no GGUF magic, expected the file to begin with \"GGUF\"");
    const auto version = cursor.read<uint32_t>("version");
    require(version != 0 && (version & 0xffffu) != 0, path(),
            ": found a big-endian file, expected little-endian");
    require(version == 2 || version == 3, path(), ": version: found ", version,
            ", expected 2 or 3");
    tensor_count_ = cursor.read<uint64_t>("tensor count");
    keys_ = cursor.read<uint64_t>("key count");
    require(tensor_count_ <= kMaxTensors, path(), ": tensor count: found ", tensor_count_,
            ", expected at most ", kMaxTensors);
    require(keys_ <= kMaxKeys, path(), ": key count: found ", keys_, ", expected at most ",
            kMaxKeys);
  }

  template <class Stored, class Wide>
  std::vector<Wide> numbers(Cursor& cursor, uint64_t count, const std::string& key) {
    require(count <= cursor.left() / sizeof(Stored), path(), ": key '", key,
            "': found an array of ", count, " entries, expected at most the ", cursor.left(),
            " bytes that are left");
    std::vector<Wide> values;
    values.reserve(size_t(count));
    for (uint64_t i = 0; i < count; ++i) values.push_back(Wide(cursor.read<Stored>("array entry")));
    return values;
  }

  std::vector<bool> booleans(Cursor& cursor, uint64_t count, const std::string& key) {
    const std::vector<uint64_t> bytes = numbers<uint8_t, uint64_t>(cursor, count, key);
    for (const uint64_t value : bytes) check_bool(value, key);
    return {bytes.begin(), bytes.end()};
  }

  std::vector<std::string> strings(Cursor& cursor, uint64_t count, const std::string& key) {
    require(count <= cursor.left() / sizeof(uint64_t), path(), ": key '", key,
            "': found an array of ", count, " strings, expected at most the ", cursor.left(),
            " bytes that are left");
    std::vector<std::string> values;
    values.reserve(size_t(count));
    for (uint64_t i = 0; i < count; ++i)
      values.push_back(cursor.string("array string", kMaxStringBytes));
    return values;
  }

  void check_bool(uint64_t value, const std::string& key) const {
    require(value <= 1, path(), ": key '", key, "': found a boolean of ", value,
            ", expected 0 or 1");
  }

  GgufValue array(Cursor& cursor, const std::string& key) {
    const auto type = cursor.read<uint32_t>("array type");
    const auto count = cursor.read<uint64_t>("array length");
    switch (type) {
      case kU8:
        return numbers<uint8_t, uint64_t>(cursor, count, key);
      case kU16:
        return numbers<uint16_t, uint64_t>(cursor, count, key);
      case kU32:
        return numbers<uint32_t, uint64_t>(cursor, count, key);
      case kU64:
        return numbers<uint64_t, uint64_t>(cursor, count, key);
      case kI8:
        return numbers<int8_t, int64_t>(cursor, count, key);
      case kI16:
        return numbers<int16_t, int64_t>(cursor, count, key);
      case kI32:
        return numbers<int32_t, int64_t>(cursor, count, key);
      case kI64:
        return numbers<int64_t, int64_t>(cursor, count, key);
      case kF32:
        return numbers<float, double>(cursor, count, key);
      case kF64:
        return numbers<double, double>(cursor, count, key);
      case kBool:
        return booleans(cursor, count, key);
      case kString:
        return strings(cursor, count, key);
      case kArray:
        throw Error(concat(path(), ": key '", key, "': found a nested array, expected a flat one"));
      default:
        throw bad_type(key, type);
    }
  }

  GgufValue value(Cursor& cursor, uint32_t type, const std::string& key) {
    switch (type) {
      case kU8:
        return uint64_t(cursor.read<uint8_t>("value"));
      case kU16:
        return uint64_t(cursor.read<uint16_t>("value"));
      case kU32:
        return uint64_t(cursor.read<uint32_t>("value"));
      case kU64:
        return cursor.read<uint64_t>("value");
      case kI8:
        return int64_t(cursor.read<int8_t>("value"));
      case kI16:
        return int64_t(cursor.read<int16_t>("value"));
      case kI32:
        return int64_t(cursor.read<int32_t>("value"));
      case kI64:
        return cursor.read<int64_t>("value");
      case kF32:
        return double(cursor.read<float>("value"));
      case kF64:
        return cursor.read<double>("value");
      case kBool: {
        const auto bits = cursor.read<uint8_t>("value");
        check_bool(bits, key);
        return bits == 1;
      }
      case kString:
        return cursor.string("string value", kMaxStringBytes);
      case kArray:
        return array(cursor, key);
      default:
        throw bad_type(key, type);
    }
  }

  Error bad_type(const std::string& key, uint32_t type) const {
    return Error(concat(path(), ": key '", key, "': found value type ", type, ", expected 0 to ",
                        kValueTypes - 1));
  }

  void read_pair(Cursor& cursor) {
    std::string key = cursor.string("key", kMaxNameBytes);
    const auto type = cursor.read<uint32_t>("value type");
    GgufValue parsed = value(cursor, type, key);
    const bool fresh = metadata_.emplace(key, std::move(parsed)).second;
    require(fresh, path(), ": key '", key, "': found twice, expected once");
  }

  void read_tensor(Cursor& cursor) {
    Pending tensor;
    tensor.info.name = cursor.string("tensor name", kMaxNameBytes);
    const std::string& name = tensor.info.name;
    const auto dims = cursor.read<uint32_t>("dimension count");
    require(dims >= 1 && dims <= kMaxDims, path(), ": tensor '", name, "': found ", dims,
            " dimensions, expected 1 to ", kMaxDims);
    std::optional<int64_t> elements = 1;
    for (uint32_t i = 0; i < dims; ++i) {
      const auto size = cursor.read<uint64_t>("dimension");
      require(size >= 1 && size <= uint64_t(std::numeric_limits<int64_t>::max()), path(),
              ": tensor '", name, "': found a dimension of ", size, ", expected at least 1");
      tensor.info.shape.insert(tensor.info.shape.begin(), int64_t(size));  // stored innermost first
      if (elements) elements = checked_multiply(*elements, int64_t(size));
    }
    tensor.info.dtype = tensor_dtype(cursor.read<uint32_t>("tensor type"), path(), name);
    const DTypeInfo& info = dtype_info(tensor.info.dtype);
    require(tensor.info.shape.back() % info.block == 0, path(), ": tensor '", name,
            "': found rows of ", tensor.info.shape.back(), " elements, expected a multiple of ",
            info.name, "'s block of ", info.block);
    const auto bytes =
        elements ? checked_multiply(*elements / info.block, info.bytes) : std::nullopt;
    require(bytes.has_value(), path(), ": tensor '", name, "': its size overflows");
    tensor.bytes = *bytes;
    tensor.offset = cursor.read<uint64_t>("tensor offset");
    pending_.push_back(std::move(tensor));
  }

  void place_tensors(const Cursor& cursor) {
    const int64_t alignment = get_int("general.alignment", kDefaultAlignment);
    require(
        alignment >= 1 && alignment <= kMaxAlignment && std::has_single_bit(uint64_t(alignment)),
        path(), ": general.alignment: found ", alignment, ", expected a power of two up to ",
        kMaxAlignment);
    const int64_t data = round_up(cursor.position(), alignment), size = file_bytes();
    std::vector<std::pair<int64_t, int64_t>> spans;
    for (Pending& tensor : pending_) {
      const std::string& name = tensor.info.name;
      require(tensor.offset % uint64_t(alignment) == 0, path(), ": tensor '", name,
              "': found offset ", tensor.offset, ", expected a multiple of ", alignment);
      require(data <= size && tensor.offset <= uint64_t(size - data) &&
                  tensor.bytes <= size - data - int64_t(tensor.offset),
              path(), ": tensor '", name, "': found ", tensor.bytes, " bytes at offset ",
              tensor.offset, ", expected them inside the file's ",
              std::max<int64_t>(size - data, 0), " bytes of data");
      const int64_t begin = data + int64_t(tensor.offset);
      tensor.info.data = file_.bytes().subspan(size_t(begin), size_t(tensor.bytes));
      spans.emplace_back(begin, begin + tensor.bytes);
      table_.add(std::move(tensor.info), path());
    }
    std::sort(spans.begin(), spans.end());
    for (size_t i = 1; i < spans.size(); ++i) {
      require(spans[i].first >= spans[i - 1].second, path(),
              ": found two tensors that overlap at byte ", spans[i].first);
    }
    pending_.clear();
  }

  struct Pending {
    TensorInfo info;
    uint64_t offset = 0;
    int64_t bytes = 0;
  };
  MappedFile file_;
  uint64_t tensor_count_ = 0, keys_ = 0;
  std::map<std::string, GgufValue, std::less<>> metadata_;
  std::vector<Pending> pending_;
  TensorTable table_;
};

const char* type_name(const GgufValue& value) {
  static constexpr const char* kNames[] = {"an integer",
                                           "an integer",
                                           "a number",
                                           "a boolean",
                                           "a string",
                                           "an array of integers",
                                           "an array of integers",
                                           "an array of numbers",
                                           "an array of booleans",
                                           "an array of strings"};
  return kNames[value.index()];
}

[[noreturn]] void wrong_type(std::string_view key, const GgufValue& value, const char* expected) {
  throw Error(concat("key '", key, "': found ", type_name(value), ", expected ", expected));
}

int64_t to_int(std::string_view key, const GgufValue& value) {
  if (const auto* number = std::get_if<int64_t>(&value)) return *number;
  if (const auto* number = std::get_if<uint64_t>(&value)) {
    require(*number <= uint64_t(std::numeric_limits<int64_t>::max()), "key '", key, "': found ",
            *number, ", expected at most 2^63 - 1");
    return int64_t(*number);
  }
  wrong_type(key, value, "an integer");
}

double to_float(std::string_view key, const GgufValue& value) {
  if (const auto* number = std::get_if<double>(&value)) return *number;
  if (const auto* number = std::get_if<int64_t>(&value)) return double(*number);
  if (const auto* number = std::get_if<uint64_t>(&value)) return double(*number);
  wrong_type(key, value, "a number");
}

const GgufValue* lookup(const GgufFile& file, std::string_view key) {
  const auto found = file.metadata().find(key);
  return found == file.metadata().end() ? nullptr : &found->second;
}

const GgufValue& demand(const GgufFile& file, std::string_view key) {
  const GgufValue* value = lookup(file, key);
  require(value != nullptr, "key '", key, "': missing");
  return *value;
}

}  // namespace

std::unique_ptr<GgufFile> GgufFile::open(const std::string& path) {
  return std::make_unique<GgufReader>(path);
}

int64_t GgufFile::get_int(std::string_view key) const { return to_int(key, demand(*this, key)); }
int64_t GgufFile::get_int(std::string_view key, int64_t fallback) const {
  const GgufValue* value = lookup(*this, key);
  return value ? to_int(key, *value) : fallback;
}
double GgufFile::get_float(std::string_view key) const { return to_float(key, demand(*this, key)); }
double GgufFile::get_float(std::string_view key, double fallback) const {
  const GgufValue* value = lookup(*this, key);
  return value ? to_float(key, *value) : fallback;
}

bool GgufFile::get_bool(std::string_view key, bool fallback) const {
  const GgufValue* value = lookup(*this, key);
  if (value == nullptr) return fallback;
  if (const auto* flag = std::get_if<bool>(value)) return *flag;
  wrong_type(key, *value, "a boolean");
}

std::string GgufFile::get_string(std::string_view key) const {
  const GgufValue& value = demand(*this, key);
  if (const auto* text = std::get_if<std::string>(&value)) return *text;
  wrong_type(key, value, "a string");
}

std::string GgufFile::get_string(std::string_view key, std::string fallback) const {
  return lookup(*this, key) ? get_string(key) : std::move(fallback);
}

const std::vector<std::string>* GgufFile::find_strings(std::string_view key) const {
  const GgufValue* value = lookup(*this, key);
  if (value == nullptr) return nullptr;
  if (const auto* list = std::get_if<std::vector<std::string>>(value)) return list;
  wrong_type(key, *value, "an array of strings");
}

std::vector<int64_t> GgufFile::get_ints(std::string_view key) const {
  const GgufValue* value = lookup(*this, key);
  if (value == nullptr) return {};
  if (const auto* list = std::get_if<std::vector<int64_t>>(value)) return *list;
  if (const auto* list = std::get_if<std::vector<uint64_t>>(value)) {
    for (const uint64_t number : *list) (void)to_int(key, GgufValue(number));
    return {list->begin(), list->end()};
  }
  wrong_type(key, *value, "an array of integers");
}

std::vector<double> GgufFile::get_floats(std::string_view key) const {
  const GgufValue* value = lookup(*this, key);
  if (value == nullptr) return {};
  if (const auto* list = std::get_if<std::vector<double>>(value)) return *list;
  wrong_type(key, *value, "an array of numbers");
}

}  // namespace longspur::io
