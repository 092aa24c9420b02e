// safetensors: u64 header length, JSON header {name: {dtype, shape, data_offsets}}, data. The
// header is read by a SAX handler that refuses what a DOM would repair: duplicate keys, unknown
// fields, wrong types, depth. Then every size is checked: tensors tile the data exactly, without
// holes or overlap.
#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "base/error.h"
#include "io/files/checked.h"
#include "io/files/json_file.h"
#include "io/files/mapped_file.h"
#include "io/files/tensor_table.h"

namespace longspur::io {

namespace fs = std::filesystem;

namespace {

constexpr uint64_t kMaxHeader = 100'000'000;
constexpr size_t kMaxDims = 32;

DType parse_dtype(const std::string& text, const std::string& where) {
  static const std::map<std::string, DType> kTypes = {
      {"F64", DType::kF64},   {"F32", DType::kF32},        {"F16", DType::kF16},
      {"BF16", DType::kBF16}, {"F8_E4M3", DType::kF8E4M3}, {"F8_E5M2", DType::kF8E5M2},
      {"I64", DType::kI64},   {"I32", DType::kI32},        {"I16", DType::kI16},
      {"I8", DType::kI8},     {"U64", DType::kU64},        {"U32", DType::kU32},
      {"U16", DType::kU16},   {"U8", DType::kU8},          {"BOOL", DType::kBool}};
  const auto found = kTypes.find(text);
  if (found == kTypes.end()) {
    throw UnsupportedError(concat(where, ": dtype: found '", text,
                                  "', expected one of F64 to F8_E5M2, I64 to U8, BOOL"));
  }
  return found->second;
}

struct HeaderEntry {
  std::string name, dtype;
  std::vector<int64_t> shape, offsets;
  bool has_dtype = false, has_shape = false, has_offsets = false;
};

// Depth 1: the header's object; 2: an entry or __metadata__; 3: an entry's array.
class HeaderHandler : public nlohmann::json_sax<nlohmann::json> {
 public:
  explicit HeaderHandler(std::string path) : path_(std::move(path)) {}
  std::vector<HeaderEntry> entries;

  bool start_object(size_t) override {
    ++depth_;
    if (depth_ > 2 || (depth_ == 2 && in_array_)) bad("a nested object");
    if (depth_ == 2 && !metadata_) entries.emplace_back().name = name_;
    fields_.clear();
    return true;
  }

  bool end_object() override {
    if (depth_ == 2 && !metadata_) {
      const HeaderEntry& entry = entries.back();
      require(entry.has_dtype && entry.has_shape && entry.has_offsets, where(),
              ": found an entry without dtype, shape or data_offsets");
    }
    --depth_;
    return true;
  }

  bool key(string_t& text) override {
    if (depth_ == 1) {
      require(names_.insert(text).second, path_, ": header: found '", text,
              "' twice, expected once");
      name_ = text;
      metadata_ = text == "__metadata__";
    } else {
      require(fields_.insert(text).second, where(), ": found field '", text,
              "' twice, expected once");
      field_ = text;
      if (!metadata_ && text != "dtype" && text != "shape" && text != "data_offsets") {
        throw Error(
            concat(where(), ": found field '", text, "', expected dtype, shape and data_offsets"));
      }
    }
    return true;
  }

  bool string(string_t& text) override {
    if (depth_ == 2 && metadata_) return true;
    if (depth_ != 2 || field_ != "dtype" || in_array_) bad("a string");
    entries.back().dtype = text;
    entries.back().has_dtype = true;
    return true;
  }

  bool start_array(size_t) override {
    if (depth_ != 2 || metadata_ || in_array_ || field_ == "dtype") bad("an array");
    in_array_ = true;
    (field_ == "shape" ? entries.back().has_shape : entries.back().has_offsets) = true;
    return true;
  }

  bool end_array() override {
    in_array_ = false;
    return true;
  }

  bool number_unsigned(number_unsigned_t value) override {
    if (!in_array_) bad("a number");
    require(value <= uint64_t(INT64_MAX), where(), ": ", field_, ": found ", value,
            ", expected at most 2^63 - 1");
    auto& list = field_ == "shape" ? entries.back().shape : entries.back().offsets;
    require(list.size() < (field_ == "shape" ? kMaxDims : 2), where(), ": ", field_,
            ": found more than ", field_ == "shape" ? kMaxDims : 2, " entries");
    list.push_back(int64_t(value));
    return true;
  }

  bool null() override { bad("null"); }
  bool boolean(bool) override { bad("a boolean"); }
  bool number_integer(number_integer_t) override { bad("a negative number"); }
  bool number_float(number_float_t, const string_t&) override { bad("a fractional number"); }
  bool binary(binary_t&) override { bad("binary data"); }
  bool parse_error(size_t position, const std::string&, const nlohmann::json::exception&) override {
    throw Error(concat(path_, ": header: found invalid JSON or UTF-8 at byte ", position));
  }

 private:
  std::string where() const { return path_ + ": tensor '" + name_ + "'"; }
  [[noreturn]] void bad(const char* found) const {
    throw Error(concat(depth_ >= 2 ? where() : path_ + ": header", ": found ", found,
                       ", expected {name: {dtype, shape, data_offsets}} and string metadata"));
  }

  std::string path_, name_, field_;
  std::set<std::string> names_, fields_;
  int depth_ = 0;
  bool in_array_ = false, metadata_ = false;
};

// One file: maps it and adds its tensors to the table.
class SafetensorsShard {
 public:
  explicit SafetensorsShard(const std::string& path) : file_(path) {}

  int64_t bytes() const { return int64_t(file_.bytes().size()); }

  void add_to(TensorTable& table) const {
    const std::span<const std::byte> bytes = file_.bytes();
    const std::string& path = file_.path();
    require(bytes.size() >= 8, path, ": header: found a file of ", bytes.size(),
            " bytes, expected at least 8");
    uint64_t length = 0;
    std::memcpy(&length, bytes.data(), 8);
    require(length <= kMaxHeader, path, ": header length: found ", length, ", expected at most ",
            kMaxHeader);
    require(length <= bytes.size() - 8, path, ": header length: found ", length,
            ", expected at most the file's ", bytes.size() - 8, " bytes after it");
    const auto* header = reinterpret_cast<const char*>(bytes.data()) + 8;
    require(length > 0 && header[0] == '{', path, ": header: found no '{' at its start");
    HeaderHandler handler(path);
    nlohmann::json::sax_parse(header, header + length, &handler);
    place(handler.entries, bytes.subspan(8 + size_t(length)), table);
  }

 private:
  void place(const std::vector<HeaderEntry>& entries,
             std::span<const std::byte> data,
             TensorTable& table) const {
    const std::string& path = file_.path();
    std::vector<std::pair<int64_t, int64_t>> spans;
    for (const HeaderEntry& entry : entries) {
      const std::string where = path + ": tensor '" + entry.name + "'";
      TensorInfo tensor{entry.name, parse_dtype(entry.dtype, where), entry.shape, {}};
      require(entry.offsets.size() == 2 && entry.offsets[0] <= entry.offsets[1], where,
              ": data_offsets: found a range that is not [begin, end] with begin <= end");
      std::optional<int64_t> size = dtype_info(tensor.dtype).bytes;
      for (const int64_t dim : entry.shape) size = size ? checked_multiply(*size, dim) : size;
      require(size.has_value(), where, ": shape: the product of its dimensions overflows");
      require(*size == entry.offsets[1] - entry.offsets[0], where, ": data_offsets: found ",
              entry.offsets[1] - entry.offsets[0], " bytes, expected ", *size,
              " from dtype and shape");
      require(entry.offsets[1] <= int64_t(data.size()), where, ": data_offsets: found an end of ",
              entry.offsets[1], ", expected at most the file's ", data.size(), " bytes of data");
      tensor.data = data.subspan(size_t(entry.offsets[0]), size_t(*size));
      spans.emplace_back(entry.offsets[0], entry.offsets[1]);
      table.add(std::move(tensor), path);
    }
    std::sort(spans.begin(), spans.end());
    int64_t end = 0;
    for (const auto& [first, past] : spans) {
      require(first == end, path, ": data_offsets: found ", first < end ? "an overlap" : "a hole",
              " at byte ", std::min(first, end), ", expected tensors side by side");
      end = past;
    }
    require(end == int64_t(data.size()), path, ": found ", int64_t(data.size()) - end,
            " bytes behind the last tensor, expected none");
  }

  MappedFile file_;
};

class SafetensorsFile final : public TensorFile {
 public:
  explicit SafetensorsFile(const std::vector<std::string>& paths) {
    for (const std::string& path : paths) {
      shards_.push_back(std::make_unique<SafetensorsShard>(path));
      shards_.back()->add_to(table_);
    }
  }
  const std::vector<TensorInfo>& tensors() const override { return table_.tensors(); }
  const TensorInfo* find(std::string_view name) const override { return table_.find(name); }
  int64_t file_bytes() const override {
    int64_t bytes = 0;
    for (const auto& shard : shards_) bytes += shard->bytes();
    return bytes;
  }

 private:
  std::vector<std::unique_ptr<SafetensorsShard>> shards_;
  TensorTable table_;
};

// A shard's name is a plain file name inside the folder, and stays there when links are resolved.
void check_shard_name(const fs::path& folder, const std::string& name, const std::string& index) {
  const fs::path path(name);
  require(!name.empty() && path.filename() == path && name != "." && name != "..", index,
          ": shard '", name, "': expected a plain file name inside the folder");
  std::error_code error;
  const fs::path real = fs::canonical(folder / path, error);
  require(!error, index, ": shard '", name, "': missing");
  // Download caches link files elsewhere; a link is followed only when the whole folder is made of
  // links to the same place, which is what such caches do.
  const fs::path home = fs::canonical(folder), target = fs::canonical(fs::path(index));
  require(real.parent_path() == home || real.parent_path() == target.parent_path(), index,
          ": shard '", name, "': found a link that leaves the folder");
}

std::unique_ptr<TensorFile> open_sharded(const fs::path& folder, const fs::path& index_path) {
  const std::string index = index_path.string();
  const nlohmann::json json = read_json_file(index);
  const auto map = json.find("weight_map");
  require(map != json.end() && map->is_object() && !map->empty(), index,
          ": weight_map: missing, empty or not an object");
  std::set<std::string> names;
  for (const auto& [tensor, shard] : map->items()) {
    require(shard.is_string(), index, ": weight_map: tensor '", tensor,
            "': found no string, expected a file name");
    names.insert(shard.get<std::string>());
  }
  std::vector<std::string> paths;
  for (const std::string& name : names) {
    check_shard_name(folder, name, index);
    paths.push_back((folder / name).string());
  }
  auto file = std::make_unique<SafetensorsFile>(paths);
  for (const auto& [tensor, shard] : map->items()) {
    require(file->find(tensor) != nullptr, index, ": tensor '", tensor, "': missing from ",
            shard.get<std::string>());
  }
  return file;
}

}  // namespace

std::unique_ptr<TensorFile> open_safetensors(const std::string& path) {
  std::error_code error;
  if (!fs::is_directory(path, error))
    return std::make_unique<SafetensorsFile>(std::vector<std::string>{path});
  const fs::path folder(path), single = folder / "model.safetensors";
  const fs::path index = folder / "model.safetensors.index.json";
  if (fs::exists(index, error)) return open_sharded(folder, index);
  require(fs::exists(single, error), path,
          ": found neither model.safetensors nor model.safetensors.index.json");
  return std::make_unique<SafetensorsFile>(std::vector<std::string>{single.string()});
}

}  // namespace longspur::io
