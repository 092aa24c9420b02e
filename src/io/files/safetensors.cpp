// safetensors: u64 header length, JSON header, data. Every size is checked: tensors tile the data
// exactly, without holes, overlap or a tail. Sharded models: an index names the shard of each
// tensor; shards are plain files of the same folder.
#include <algorithm>
#include <cstring>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "base/error.h"
#include "io/files/checked.h"
#include "io/files/json_file.h"
#include "io/files/mapped_file.h"
#include "io/files/printable.h"
#include "io/files/safetensors_header.h"
#include "io/files/tensor_table.h"

namespace longspur::io {

namespace fs = std::filesystem;

namespace {

constexpr uint64_t kMaxHeader = 100'000'000;

DType parse_dtype(const std::string& text, const std::string& where) {
  static const std::map<std::string, DType> kTypes = {{"F64", DType::kF64},
                                                      {"F32", DType::kF32},
                                                      {"F16", DType::kF16},
                                                      {"BF16", DType::kBF16},
                                                      {"F8_E4M3", DType::kF8E4M3},
                                                      {"F8_E5M2", DType::kF8E5M2},
                                                      {"F8_E8M0", DType::kF8E8M0},
                                                      {"F8_E4M3FNUZ", DType::kF8E4M3FNUZ},
                                                      {"F8_E5M2FNUZ", DType::kF8E5M2FNUZ},
                                                      {"F6_E2M3", DType::kF6E2M3},
                                                      {"F6_E3M2", DType::kF6E3M2},
                                                      {"F4", DType::kF4},
                                                      {"C64", DType::kC64},
                                                      {"I64", DType::kI64},
                                                      {"I32", DType::kI32},
                                                      {"I16", DType::kI16},
                                                      {"I8", DType::kI8},
                                                      {"U64", DType::kU64},
                                                      {"U32", DType::kU32},
                                                      {"U16", DType::kU16},
                                                      {"U8", DType::kU8},
                                                      {"BOOL", DType::kBool}};
  const auto found = kTypes.find(text);
  if (found == kTypes.end()) {
    throw UnsupportedError(concat(where, ": dtype: found ", shown(text),
                                  ", expected F64, F32, F16, BF16, F8_*, F6_*, F4, C64, I64 to I8, "
                                  "U64 to U8 or BOOL"));
  }
  return found->second;
}

// Bytes that dtype and shape ask for. Types of less than a byte count in bits and end on a byte.
int64_t tensor_bytes(DType dtype, const std::vector<int64_t>& shape, const std::string& where) {
  const DTypeInfo& info = dtype_info(dtype);
  std::optional<int64_t> elements = 1;
  for (const int64_t dim : shape) elements = elements ? checked_multiply(*elements, dim) : elements;
  const auto product = elements ? checked_multiply(*elements, info.bytes) : std::nullopt;
  require(product.has_value(), where, ": shape: the product of its dimensions overflows");
  require(*elements % info.block == 0, where, ": shape: found ", *elements, " values of ",
          info.name, ", expected a multiple of ", info.block, " to end on a byte");
  return *elements / info.block * info.bytes;
}

// One file: maps it and adds its tensors to the table.
class SafetensorsShard {
 public:
  explicit SafetensorsShard(const std::string& path) : file_(path) {}

  int64_t bytes() const { return int64_t(file_.bytes().size()); }
  void check_unchanged() const { file_.check_unchanged(); }

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
    const auto* text = reinterpret_cast<const char*>(bytes.data()) + 8;
    place(parse_safetensors_header({text, size_t(length)}, path), bytes.subspan(8 + size_t(length)),
          table);
    check_unchanged();
  }

 private:
  void place(const std::vector<SafetensorsEntry>& entries,
             std::span<const std::byte> data,
             TensorTable& table) const {
    std::vector<std::pair<int64_t, int64_t>> spans;
    for (const SafetensorsEntry& entry : entries) {
      TensorInfo tensor = locate(entry, data);
      spans.emplace_back(entry.offsets[0], entry.offsets[1]);
      table.add(std::move(tensor), file_.path());
    }
    check_tiling(std::move(spans), int64_t(data.size()));
  }

  TensorInfo locate(const SafetensorsEntry& entry, std::span<const std::byte> data) const {
    const std::string where = concat(file_.path(), ": tensor ", shown(entry.name));
    const DType dtype = parse_dtype(entry.dtype, where);
    require(entry.offsets.size() == 2, where, ": data_offsets: found ", entry.offsets.size(),
            " numbers, expected [begin, end]");
    const int64_t begin = entry.offsets[0], end = entry.offsets[1];
    require(begin <= end, where, ": data_offsets: found begin ", begin, " and end ", end,
            ", expected begin <= end");
    const int64_t size = tensor_bytes(dtype, entry.shape, where);
    require(size == end - begin, where, ": data_offsets: found ", end - begin, " bytes, expected ",
            size, " from dtype and shape");
    require(end <= int64_t(data.size()), where, ": data_offsets: found an end of ", end,
            ", expected at most the file's ", data.size(), " bytes of data");
    return {entry.name, dtype, entry.shape, data.subspan(size_t(begin), size_t(size))};
  }

  void check_tiling(std::vector<std::pair<int64_t, int64_t>> spans, int64_t size) const {
    std::sort(spans.begin(), spans.end());
    int64_t end = 0;
    for (const auto& [first, past] : spans) {
      require(first == end, file_.path(), ": data_offsets: found ",
              first < end ? "an overlap" : "a hole", " at byte ", std::min(first, end),
              ", expected tensors side by side");
      end = past;
    }
    require(end == size, file_.path(), ": found ", size - end,
            " bytes behind the last tensor, expected none");
  }

  MappedFile file_;
};

class SafetensorsFile final : public TensorFile {
 public:
  SafetensorsFile(std::string path, const std::vector<std::string>& shards)
      : path_(std::move(path)) {
    for (const std::string& shard : shards) {
      shards_.push_back(std::make_unique<SafetensorsShard>(shard));
      shards_.back()->add_to(table_);
      ends_.push_back(table_.tensors().size());
    }
  }
  const std::string& path() const override { return path_; }
  const std::vector<TensorInfo>& tensors() const override { return table_.tensors(); }
  const TensorInfo* find(std::string_view name) const override { return table_.find(name); }
  int64_t file_bytes() const override {
    int64_t bytes = 0;
    for (const auto& shard : shards_) bytes += shard->bytes();
    return bytes;
  }
  void check_unchanged() const override {
    for (const auto& shard : shards_) shard->check_unchanged();
  }

  // Which shard, by its place in the constructor's list, holds the tensor.
  size_t shard_of(const TensorInfo& tensor) const {
    const auto index = size_t(&tensor - table_.tensors().data());
    return size_t(std::upper_bound(ends_.begin(), ends_.end(), index) - ends_.begin());
  }

 private:
  std::string path_;
  std::vector<std::unique_ptr<SafetensorsShard>> shards_;
  TensorTable table_;
  std::vector<size_t> ends_;  // tensors in all shards up to and including this one
};

// A shard's name is a plain file name inside the folder, and stays there when links are resolved.
void check_shard_name(const fs::path& folder, const std::string& name, const std::string& index) {
  const std::string where = concat(index, ": weight_map: shard ", shown(name));
  const fs::path path(name);
  const bool plain = !name.empty() && path.filename() == path && name != "." && name != ".." &&
                     name.find('\0') == name.npos;
  require(plain, where, ": expected the plain name of a file in the same folder");
  std::error_code missing, error;
  const fs::path real = fs::canonical(folder / path, missing);
  require(!missing, where, ": missing, expected in ", folder.string());
  // Download caches keep files elsewhere and link to them, index and shards alike: a link may lead
  // to where the index really is.
  const fs::path home = fs::canonical(folder, error), target = fs::canonical(index, error);
  require(!error, index, ": ", error.message());
  require(real.parent_path() == home || real.parent_path() == target.parent_path(), where,
          ": found a link out of the folder, expected a file in it");
}

std::map<std::string, std::string> read_weight_map(const std::string& index) {
  const nlohmann::json json = read_json_file(index);
  const auto map = json.find("weight_map");
  require(map != json.end(), index, ": weight_map: missing");
  require(map->is_object() && !map->empty(), index, ": weight_map: found ",
          map->is_object() ? "no entry" : map->type_name(), ", expected {tensor: file}");
  std::map<std::string, std::string> shards;
  for (const auto& [tensor, shard] : map->items()) {
    require(shard.is_string(), index, ": weight_map: tensor ", shown(tensor), ": found ",
            shard.type_name(), ", expected a file name");
    shards[tensor] = shard.get<std::string>();
  }
  return shards;
}

std::unique_ptr<TensorFile> open_sharded(const fs::path& folder, const std::string& index) {
  const std::map<std::string, std::string> map = read_weight_map(index);
  std::set<std::string> names;
  for (const auto& [tensor, shard] : map) names.insert(shard);
  std::vector<std::string> paths;
  for (const std::string& name : names) {
    check_shard_name(folder, name, index);
    paths.push_back((folder / name).string());
  }
  auto file = std::make_unique<SafetensorsFile>(folder.string(), paths);
  for (const auto& [name, shard] : map) {
    const TensorInfo* tensor = file->find(name);
    const auto expected = size_t(std::distance(names.begin(), names.find(shard)));
    require(tensor != nullptr && file->shard_of(*tensor) == expected, index,
            ": weight_map: tensor ", shown(name), ": missing from ", shard);
  }
  return file;
}

}  // namespace

std::unique_ptr<TensorFile> open_safetensors(const std::string& path) {
  std::error_code error;
  if (!fs::is_directory(path, error))
    return std::make_unique<SafetensorsFile>(path, std::vector<std::string>{path});
  // as transformers does: the single file wins when both are there
  const fs::path folder(path), single = folder / "model.safetensors";
  const fs::path index = folder / "model.safetensors.index.json";
  if (fs::exists(single, error))
    return std::make_unique<SafetensorsFile>(path, std::vector<std::string>{single.string()});
  require(fs::exists(index, error), path,
          ": found neither model.safetensors nor model.safetensors.index.json");
  return open_sharded(folder, index.string());
}

}  // namespace longspur::io
