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
#include "io/files/printable.h"
#include "io/files/tensor_table.h"

namespace longspur::io {

namespace {

constexpr uint64_t kMaxKeys = 1 << 16;
constexpr uint64_t kMaxTensors = 1 << 20;
constexpr uint64_t kMaxNameBytes = 1024;
constexpr uint64_t kMaxStringBytes = uint64_t(64) << 20;
constexpr uint64_t kMaxArray = uint64_t(1) << 24;
constexpr uint64_t kLeastPairBytes = 8 + 4 + 1;            // empty key, one byte of value
constexpr uint64_t kLeastTensorBytes = 8 + 4 + 8 + 4 + 8;  // empty name, one dimension
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

  // A name of something: short, printable UTF-8.
  std::string name(const char* what) {
    std::string text = string(what, kMaxNameBytes);
    const bool control =
        std::any_of(text.begin(), text.end(), [](char c) { return uint8_t(c) < 0x20; });
    require(!text.empty() && !control && is_utf8(text), path_, ": ", what, ": found ", shown(text),
            ", expected UTF-8 text without control characters");
    return text;
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

struct TypeId {
  uint32_t id;
  DType dtype;
};
constexpr TypeId kTypeIds[] = {{0, DType::kF32},   {1, DType::kF16},   {2, DType::kQ4_0},
                               {3, DType::kQ4_1},  {6, DType::kQ5_0},  {7, DType::kQ5_1},
                               {8, DType::kQ8_0},  {12, DType::kQ4_K}, {13, DType::kQ5_K},
                               {14, DType::kQ6_K}, {24, DType::kI8},   {25, DType::kI16},
                               {26, DType::kI32},  {27, DType::kI64},  {28, DType::kF64},
                               {30, DType::kBF16}, {40, DType::kNVFP4}};

DType tensor_dtype(uint32_t id, const std::string& path, const std::string& name) {
  for (const TypeId& type : kTypeIds)
    if (type.id == id) return type.dtype;
  throw UnsupportedError(
      concat(path, ": tensor ", shown(name), ": found type id ", id,
             ", expected F32, F16, BF16, F64, I8 to I64, Q8_0, Q4_0, Q4_1, Q5_0, "
             "Q5_1, Q4_K, Q5_K, Q6_K or NVFP4"));
}

class GgufReader final : public GgufFile {
 public:
  explicit GgufReader(const std::string& path) : file_(path) {
    Cursor cursor(file_.bytes(), file_.path());
    read_header(cursor);
    for (uint64_t i = 0; i < keys_; ++i) read_pair(cursor);
    refuse_parts();
    for (uint64_t i = 0; i < tensor_count_; ++i) read_tensor(cursor);
    place_tensors(cursor);
    check_unchanged();
  }

  const std::string& path() const override { return file_.path(); }
  void check_unchanged() const override { file_.check_unchanged(); }
  const std::vector<TensorInfo>& tensors() const override { return table_.tensors(); }
  const TensorInfo* find(std::string_view name) const override { return table_.find(name); }
  int64_t file_bytes() const override { return int64_t(file_.bytes().size()); }
  const std::map<std::string, GgufValue, std::less<>>& metadata() const override {
    return metadata_;
  }
  const std::vector<StoredKey>& stored_keys() const override { return stored_keys_; }

 private:
  void read_header(Cursor& cursor) {
    const auto magic = cursor.read<uint32_t>("magic");
    require(magic == 0x46554747u, path(),
            ": found no GGUF magic, expected the file to begin with \"GGUF\"");
    const auto version = cursor.read<uint32_t>("version");
    require(version == 0 || (version & 0xffffu) != 0, path(),
            ": found a big-endian file, expected little-endian");
    require(version == 2 || version == 3, path(), ": version: found ", version,
            ", expected 2 or 3");
    tensor_count_ = cursor.read<uint64_t>("tensor count");
    keys_ = cursor.read<uint64_t>("key count");
    check_count(tensor_count_, std::min(kMaxTensors, cursor.left() / kLeastTensorBytes), "tensor");
    check_count(keys_, std::min(kMaxKeys, cursor.left() / kLeastPairBytes), "key");
  }

  void check_count(uint64_t found, uint64_t most, const char* what) const {
    require(found <= most, path(), ": ", what, " count: found ", found, ", expected at most ", most,
            " in a file of this size");
  }

  // A part of a split model has only some of the tensors; say so instead of listing the others.
  void refuse_parts() const {
    const int64_t parts = get_int("split.count", 1);
    if (parts > 1) {
      throw UnsupportedError(concat(path(), ": key 'split.count': found one of ", parts,
                                    " parts, expected a whole model (merge the parts first)"));
    }
  }

  void check_array(uint64_t count,
                   uint64_t least_bytes,
                   const Cursor& cursor,
                   const std::string& key) const {
    require(count <= kMaxArray && count <= cursor.left() / least_bytes, path(), ": key ",
            shown(key), ": found an array of ", count, " entries, expected at most ",
            std::min(kMaxArray, cursor.left() / least_bytes), " in what is left of the file");
  }

  template <class Stored, class Wide>
  std::vector<Wide> numbers(Cursor& cursor, uint64_t count, const std::string& key) {
    check_array(count, sizeof(Stored), cursor, key);
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
    check_array(count, sizeof(uint64_t), cursor, key);
    std::vector<std::string> values;
    values.reserve(size_t(count));
    for (uint64_t i = 0; i < count; ++i)
      values.push_back(cursor.string("array string", kMaxStringBytes));
    return values;
  }

  void check_bool(uint64_t value, const std::string& key) const {
    require(value <= 1, path(), ": key ", shown(key), ": found a boolean of ", value,
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
        throw Error(
            concat(path(), ": key ", shown(key), ": found a nested array, expected a flat one"));
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
    return Error(concat(path(), ": key ", shown(key), ": found value type ", type,
                        ", expected 0 to ", kValueTypes - 1));
  }

  void read_pair(Cursor& cursor) {
    const std::string key = cursor.name("key");
    const int64_t begin = cursor.position();
    const auto type = cursor.read<uint32_t>("value type");
    GgufValue parsed = value(cursor, type, key);
    const bool fresh = metadata_.emplace(key, std::move(parsed)).second;
    require(fresh, path(), ": key ", shown(key), ": found twice, expected once");
    stored_keys_.push_back(
        {key, file_.bytes().subspan(size_t(begin), size_t(cursor.position() - begin))});
  }

  void read_tensor(Cursor& cursor) {
    Pending tensor;
    tensor.info.name = cursor.name("tensor name");
    const std::string& name = tensor.info.name;
    const auto dims = cursor.read<uint32_t>("dimension count");
    require(dims >= 1 && dims <= kMaxDims, path(), ": tensor ", shown(name), ": found ", dims,
            " dimensions, expected 1 to ", kMaxDims);
    std::optional<int64_t> elements = 1;
    for (uint32_t i = 0; i < dims; ++i) {
      const auto size = cursor.read<uint64_t>("dimension");
      require(size >= 1 && size <= uint64_t(std::numeric_limits<int64_t>::max()), path(),
              ": tensor ", shown(name), ": found a dimension of ", size, ", expected at least 1");
      tensor.info.shape.insert(tensor.info.shape.begin(), int64_t(size));  // stored innermost first
      if (elements) elements = checked_multiply(*elements, int64_t(size));
    }
    tensor.info.dtype = tensor_dtype(cursor.read<uint32_t>("tensor type"), path(), name);
    const DTypeInfo& info = dtype_info(tensor.info.dtype);
    require(tensor.info.shape.back() % info.block == 0, path(), ": tensor ", shown(name),
            ": found rows of ", tensor.info.shape.back(), " elements, expected a multiple of ",
            info.name, "'s block of ", info.block);
    const auto bytes =
        elements ? checked_multiply(*elements / info.block, info.bytes) : std::nullopt;
    require(bytes.has_value(), path(), ": tensor ", shown(name), ": its size overflows");
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
      require(tensor.offset % uint64_t(alignment) == 0, path(), ": tensor ", shown(name),
              ": found offset ", tensor.offset, ", expected a multiple of ", alignment);
      require(data <= size && tensor.offset <= uint64_t(size - data) &&
                  tensor.bytes <= size - data - int64_t(tensor.offset),
              path(), ": tensor ", shown(name), ": found ", tensor.bytes, " bytes at offset ",
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
  std::vector<StoredKey> stored_keys_;
  std::vector<Pending> pending_;
  TensorTable table_;
};

}  // namespace

std::optional<uint32_t> gguf_type_id(DType dtype) {
  for (const TypeId& type : kTypeIds)
    if (type.dtype == dtype) return type.id;
  return std::nullopt;
}

std::unique_ptr<GgufFile> GgufFile::open(const std::string& path) {
  return std::make_unique<GgufReader>(path);
}

}  // namespace longspur::io
