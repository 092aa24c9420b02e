#include "io/files/model_writer.h"

#include <algorithm>
#include <filesystem>
#include <map>
#include <optional>

#include "base/error.h"
#include "io/files/gguf.h"
#include "io/files/gguf_header.h"
#include "io/files/model_files.h"
#include "io/files/model_parts.h"
#include "io/files/output.h"
#include "io/files/printable.h"
#include "io/files/safetensors_writer.h"
#include "io/files/tensor_names.h"

namespace longspur::io {

namespace fs = std::filesystem;

namespace {

constexpr std::pair<ModelDialect, std::string_view> kDialects[] = {
    {ModelDialect::kModelOpt, "modelopt"},
    {ModelDialect::kCompressedTensors, "compressed-tensors"},
    {ModelDialect::kFourOverSix, "fouroversix"},
    {ModelDialect::kGguf, "gguf"}};

constexpr int64_t kChunkBytes = int64_t(8) << 20;

// The model that is converted: its tensors, whatever they are stored in.
struct Source {
  explicit Source(const std::string& path) : folder(fs::is_directory(path) ? path : "") {
    if (folder.empty()) {
      auto opened = GgufFile::open(path);
      config = model_config_from_gguf(*opened);
      gguf = opened.get();
      file = std::move(opened);
    } else {
      config = model_config_from_hf(folder);
      file = open_safetensors(folder);
    }
  }
  NameStyle names() const { return gguf ? NameStyle::kGguf : NameStyle::kHf; }

  std::string folder;              // empty for a GGUF file
  const GgufFile* gguf = nullptr;  // null for a folder
  std::unique_ptr<TensorFile> file;
  ModelConfig config;
};

// A tensor on its way.
struct Item {
  const TensorInfo* stored = nullptr;
  std::optional<StoredNvfp4> nvfp4;
  std::optional<TensorRole> role;
  int64_t heads_from = 0, heads_to = 0;  // permutation of the rows in source and target

  std::string target;  // its name there; empty: left out
  DType dtype = DType::kF32;
  bool declared = false, with_input = false;
  int64_t rows_missing = 0;
  std::vector<StoredPart> parts;
};

// Names that are part of an NVFP4 matrix, or that no model of ours reads.
bool is_auxiliary(const TensorFile& file, const std::string& name) {
  for (const char* end :
       {".weight_scale", ".weight_scale_2", ".weight_global_scale", ".input_scale",
        ".input_global_scale", ".quantized_weight_scale_factors", ".quantized_weight_amax",
        ".quantized_weight_metadata", ".k_scale", ".v_scale", ".rotary_emb.inv_freq"})
    if (name.ends_with(end)) return true;
  if (!name.ends_with(".scale")) return name == "rope_freqs.weight";
  const TensorInfo* weight = file.find(name.substr(0, name.size() - 5) + "weight");
  return weight && weight->dtype == DType::kNVFP4;
}

// "x.weight" of "x.weight_packed" and the like.
std::string weight_name(std::string name) {
  for (const std::string_view end : {".weight_packed", ".quantized_weight_values"})
    if (name.ends_with(end)) return name.substr(0, name.size() - end.size()) + ".weight";
  return name;
}

}  // namespace

ModelDialect parse_dialect(std::string_view name) {
  std::string known;
  for (const auto& [dialect, known_name] : kDialects) {
    if (name == known_name) return dialect;
    known += concat(known.empty() ? "" : ", ", known_name);
  }
  throw UsageError(concat("format ", shown(name), ": expected one of ", known));
}

std::string_view dialect_name(ModelDialect dialect) {
  for (const auto& [known, name] : kDialects)
    if (known == dialect) return name;
  throw InternalError("dialect_name: found a value outside the enum");
}

class ModelWriter::Impl {
 public:
  Impl(const std::string& source, const std::string& out, const ModelWriterOptions& options)
      : options_(options), source_(source), output_(out, kind(), options.overwrite) {
    for (const TensorInfo& tensor : source_.file->tensors())
      if (!is_auxiliary(*source_.file, tensor.name)) add(weight_name(tensor.name));
  }

  const std::vector<LogicalTensor>& tensors() const { return tensors_; }

  bool can_hold_nvfp4(int64_t k) const { return k > 0 && k % (is_gguf() ? 64 : 16) == 0; }

  void declare_nvfp4(const std::string& name, bool with_input) {
    Item& item = declare(name);
    const LogicalTensor& tensor = tensors_[index_.at(name)];
    require(tensor.shape.size() == 2 && can_hold_nvfp4(tensor.shape[1]), where(name),
            ": found the shape of a tensor that cannot be NVFP4 in ",
            dialect_name(options_.dialect), ", expected rows of a multiple of ",
            is_gguf() ? 64 : 16, " values");
    item.dtype = DType::kNVFP4;
    item.with_input = with_input;
  }

  void declare_values(const std::string& name, DType dtype) {
    const bool known = dtype == DType::kF32 || dtype == DType::kBF16 || dtype == DType::kF16 ||
                       (dtype == DType::kQ8_0 && is_gguf());
    require(known, where(name), ": type ", dtype_info(dtype).name, " cannot be written in ",
            dialect_name(options_.dialect));
    Item& item = declare(name);
    const auto& shape = tensors_[index_.at(name)].shape;
    require(shape.back() % dtype_info(dtype).block == 0, where(name), ": found rows of ",
            shape.back(), " values, expected a multiple of ", dtype_info(dtype).block, " for ",
            dtype_info(dtype).name);
    item.dtype = dtype;
    item.rows_missing = rows_of(item, tensors_[index_.at(name)]).first;
  }

  void begin() {
    LONGSPUR_ASSERT(file_ == nullptr);
    modules_ = modules();
    for (size_t i = 0; i < items_.size(); ++i) plan_parts(items_[i], tensors_[i]);
    is_gguf() ? begin_gguf() : begin_folder();
    if (!is_gguf()) write_folder();
  }

  void write(const Nvfp4Matrix& matrix) {
    validate(matrix);
    Item& item = declared(matrix.name, DType::kNVFP4);
    const LogicalTensor& tensor = tensors_[index_.at(matrix.name)];
    require(tensor.shape == std::vector{matrix.rows, matrix.k}, where(matrix.name), ": found [",
            matrix.rows, ", ", matrix.k, "], expected [", tensor.shape[0], ", ", tensor.shape[1],
            "]");
    require(!modules_.with_input || matrix.input_multiplier > 0.0f, where(matrix.name),
            ": found no scale of its input, expected the one that was declared");
    require(item.rows_missing != 0, where(matrix.name), ": written twice");
    item.rows_missing = 0;
    write_nvfp4(item, matrix, durable_multiplier(matrix.multiplier),
                durable_multiplier(matrix.input_multiplier));
  }

  void write_values(const std::string& name, int64_t row, std::span<const float> values) {
    Item& item = declared(name, std::nullopt);
    const auto [rows, k] = rows_of(item, tensors_[index_.at(name)]);
    const int64_t count = int64_t(values.size()) / k;
    const bool whole = int64_t(values.size()) % k == 0 && row >= 0 && count <= rows - row;
    require(whole, where(name), ": found ", values.size(), " values from row ", row,
            ", expected whole rows of ", k, " within ", rows);
    item.rows_missing -= count;
    require(item.rows_missing >= 0, where(name), ": rows written twice");
    encode_rows(item, rows, k, row, values);
  }

  void commit(const std::function<void(int64_t, int64_t)>& progress) {
    LONGSPUR_ASSERT(file_ != nullptr);
    int64_t done = 0, all = 0;
    for (const Item& item : items_) {
      require(!item.declared || item.rows_missing == 0, where(item.stored->name),
              ": declared but not written whole");
      for (const StoredPart& part : item.parts) all += part.bytes();
    }
    for (size_t i = 0; i < items_.size(); ++i) {
      if (!items_[i].declared && !items_[i].target.empty()) copy(items_[i], tensors_[i]);
      for (const StoredPart& part : items_[i].parts) done += part.bytes();
      if (progress) progress(done, all);
    }
    source_.file->check_unchanged();
    file_->close();
    output_.commit();
  }

  int64_t data_bytes() const {
    int64_t all = 0;
    for (const Item& item : items_)
      for (const StoredPart& part : item.parts) all += part.bytes();
    return all;
  }

 private:
  bool is_gguf() const { return options_.dialect == ModelDialect::kGguf; }
  PendingOutput::Kind kind() const {
    return is_gguf() ? PendingOutput::Kind::kFile : PendingOutput::Kind::kFolder;
  }
  std::string where(const std::string& name) const { return concat("tensor ", shown(name)); }

  void add(const std::string& name) {
    if (index_.contains(name)) return;
    Item item;
    item.nvfp4 = find_nvfp4(*source_.file, name, source_.config.quantization.fouroversix_top);
    item.stored = item.nvfp4 ? item.nvfp4->codes : source_.file->find(name);
    if (item.stored == nullptr || item.stored->shape.empty())
      throw UnsupportedError(concat(source_.file->path(), ": tensor ", shown(name),
                                    ": found a form that is not understood"));
    item.role = tensor_role(source_.names(), name);
    if (item.role) {
      const int64_t heads = permuted_heads(*item.role, source_.config);
      item.heads_from = source_.gguf ? heads : 0;
      item.heads_to = is_gguf() ? heads : 0;
    }
    item.target = target_name(item, name);
    const auto shape =
        item.nvfp4 ? std::vector{item.nvfp4->rows, item.nvfp4->k} : item.stored->shape;
    item.dtype = target_dtype(item, shape);
    item.with_input = item.nvfp4 && item.nvfp4->input_multiplier > 0.0f;
    index_[name] = items_.size();
    tensors_.push_back({name, shape, item.nvfp4 ? DType::kNVFP4 : item.stored->dtype});
    items_.push_back(std::move(item));
  }

  // A model whose family is known has only tensors that are known; within one kind of file others
  // may be carried along.
  std::string target_name(const Item& item, const std::string& name) const {
    const NameStyle style = is_gguf() ? NameStyle::kGguf : NameStyle::kHf;
    const bool head = item.role && item.role->part == TensorRole::Part::kHead;
    if (head && source_.config.tied_embeddings) return {};
    if (style == source_.names()) return name;
    if (!item.role)
      throw UnsupportedError(concat(source_.file->path(), ": tensor ", shown(name),
                                    ": has no place in a ", dialect_name(options_.dialect),
                                    " model of this family"));
    return tensor_name(style, *item.role);
  }

  // Of a tensor that nobody declares.
  DType target_dtype(const Item& item, const std::vector<int64_t>& shape) const {
    const DType stored = item.nvfp4 ? DType::kNVFP4 : item.stored->dtype;
    if (stored == DType::kNVFP4) return can_hold_nvfp4(shape.back()) ? DType::kNVFP4 : DType::kBF16;
    if (is_gguf() == (source_.gguf != nullptr)) return stored;
    if (is_gguf() && shape.size() == 1) return DType::kF32;  // as its readers expect
    const bool kept = stored == DType::kF32 || stored == DType::kBF16 || stored == DType::kF16;
    return kept ? stored : DType::kBF16;
  }

  // Rows and their length; of a bias with permuted rows each element is a row.
  static std::pair<int64_t, int64_t> rows_of(const Item& item, const LogicalTensor& tensor) {
    const bool vector = tensor.shape.size() == 1, permuted = item.heads_from + item.heads_to > 0;
    const int64_t rows = vector && !permuted ? 1 : tensor.shape[0];
    int64_t elements = 1;
    for (const int64_t size : tensor.shape) elements *= size;
    return {rows, elements / rows};
  }

  Item& declare(const std::string& name) {
    LONGSPUR_ASSERT(file_ == nullptr);
    const auto found = index_.find(name);
    require(found != index_.end(), where(name), ": not found in ", source_.file->path());
    Item& item = items_[found->second];
    require(!item.target.empty(), where(name), ": is left out, the embedding serves as the head");
    item.declared = true;
    item.rows_missing = -1;
    return item;
  }

  Item& declared(const std::string& name, std::optional<DType> dtype) {
    LONGSPUR_ASSERT(file_ != nullptr);
    const auto found = index_.find(name);
    require(found != index_.end() && items_[found->second].declared &&
                (!dtype || items_[found->second].dtype == *dtype),
            where(name), ": was not declared as what is written");
    return items_[found->second];
  }

  QuantizedModules modules() const {
    QuantizedModules modules;
    modules.dialect = options_.dialect;
    modules.scale_top = options_.scale_top;
    modules.with_input = true;
    bool head = false;
    for (size_t i = 0; i < items_.size(); ++i) {
      const Item& item = items_[i];
      if (item.target.empty()) continue;
      if (item.dtype == DType::kNVFP4) {
        modules.any = true;
        modules.with_input = modules.with_input && item.with_input;
        continue;
      }
      const bool linear = tensors_[i].shape.size() == 2 && item.target.ends_with(".weight") &&
                          !(item.role && item.role->part == TensorRole::Part::kEmbedding);
      if (!linear) continue;
      head = head || item.target == "lm_head.weight";
      modules.ignored.push_back(item.target.substr(0, item.target.size() - 7));
    }
    if (!head && !index_.contains("lm_head.weight")) modules.ignored.push_back("lm_head");
    modules.with_input = modules.with_input && modules.any;
    return modules;
  }

  void plan_parts(Item& item, const LogicalTensor& tensor) const {
    if (item.target.empty()) return;
    if (item.dtype == DType::kNVFP4) {
      item.parts = nvfp4_parts(options_.dialect, item.target, tensor.shape[0], tensor.shape[1],
                               modules_.with_input);
    } else {
      item.parts = {{item.target, item.dtype, tensor.shape}};
    }
  }

  template <class Use>
  void each_part(Use use) {
    for (Item& item : items_)
      for (StoredPart& part : item.parts) use(part);
  }

  void begin_gguf() {
    GgufHeader header;
    source_.gguf ? add_keys(*source_.gguf, modules_, header)
                 : add_keys(source_.folder, source_.config, modules_, header);
    const std::vector<float> factors = rope_freq_factors(source_.config);
    const auto factor_bytes = std::as_bytes(std::span(factors));
    each_part([&](StoredPart& p) { header.tensor(p.name, p.shape, p.dtype, p.bytes()); });
    if (!factors.empty())
      header.tensor("rope_freqs.weight", {int64_t(factors.size())}, DType::kF32,
                    int64_t(factor_bytes.size()));
    std::vector<int64_t> offsets;
    const std::string text = header.finish(offsets);
    size_t next = 0;
    each_part([&](StoredPart& p) { p.offset = offsets[next++]; });
    open_file(output_.path(), output_.target(), header.file_bytes(), text);
    if (!factors.empty()) file_->write(offsets[next], factor_bytes);
  }

  void begin_folder() {
    std::vector<TensorToWrite> list;
    each_part([&](StoredPart& p) { list.push_back({p.name, p.dtype, p.shape, {}}); });
    int64_t bytes = 0;
    const std::string text = safetensors_header(list, {{"format", "pt"}}, bytes);
    int64_t offset = int64_t(text.size());
    each_part([&](StoredPart& p) {
      p.offset = offset;
      offset += p.bytes();
    });
    const std::string name = "model.safetensors";
    open_file((fs::path(output_.path()) / name).string(),
              (fs::path(output_.target()) / name).string(), offset, text);
  }

  void open_file(const std::string& path,
                 const std::string& shown_as,
                 int64_t bytes,
                 const std::string& header) {
    file_ = std::make_unique<OutputFile>(path, shown_as, bytes);
    file_->write(0, std::as_bytes(std::span(header.data(), header.size())));
  }

  void write_folder() const {
    const auto write = [&](const std::string& name, std::string_view text) {
      write_file((fs::path(output_.path()) / name).string(),
                 (fs::path(output_.target()) / name).string(), text);
    };
    source_.gguf ? write_folder_files(*source_.gguf, source_.config, modules_, write)
                 : write_folder_files(source_.folder, modules_, write);
  }

  void write_nvfp4(const Item& item,
                   const Nvfp4Matrix& matrix,
                   float multiplier,
                   float input_multiplier) {
    const auto bytes = encode_nvfp4({options_.dialect, multiplier, input_multiplier, item.heads_to,
                                     modules_.with_input, options_.scale_top},
                                    matrix);
    for (size_t i = 0; i < item.parts.size(); ++i) file_->write(item.parts[i].offset, bytes[i]);
  }

  void encode_rows(
      const Item& item, int64_t rows, int64_t k, int64_t row, std::span<const float> values) {
    const int64_t row_bytes = dtype_bytes(item.dtype, k);
    std::vector<std::byte> bytes(size_t(dtype_bytes(item.dtype, int64_t(values.size()))));
    encode_values(values, item.dtype, bytes.data());
    write_rows(item, rows, row, row_bytes, bytes);
  }

  // Whole rows in the model's order to where the target has them.
  void write_rows(const Item& item,
                  int64_t rows,
                  int64_t row,
                  int64_t row_bytes,
                  std::span<const std::byte> bytes) {
    const int64_t begin = item.parts[0].offset;
    if (item.heads_to == 0) return file_->write(begin + row * row_bytes, bytes);
    for (int64_t i = 0; i * row_bytes < int64_t(bytes.size()); ++i)
      file_->write(begin + interleaved_row(row + i, rows, item.heads_to) * row_bytes,
                   bytes.subspan(size_t(i * row_bytes), size_t(row_bytes)));
  }

  void copy(const Item& item, const LogicalTensor& tensor) {
    if (item.nvfp4) return copy_nvfp4(item, tensor);
    const auto [rows, k] = rows_of(item, tensor);
    const DType from = item.stored->dtype;
    const int64_t from_bytes = dtype_bytes(from, k),
                  chunk = std::max<int64_t>(1, kChunkBytes / from_bytes);
    std::vector<std::byte> bytes;
    for (int64_t row = 0; row < rows; row += chunk) {
      const int64_t count = std::min(chunk, rows - row);
      bytes.resize(size_t(count * from_bytes));
      for (int64_t i = 0; i < count; ++i) {
        const int64_t at = interleaved_row(row + i, rows, item.heads_from);
        const auto stored = item.stored->data.subspan(size_t(at * from_bytes), size_t(from_bytes));
        std::copy(stored.begin(), stored.end(), bytes.begin() + i * from_bytes);
      }
      if (from == item.dtype) {
        write_rows(item, rows, row, from_bytes, bytes);
        continue;
      }
      std::vector<float> values(size_t(count * k));
      dequantize(from, bytes.data(), count * k, values.data());
      encode_rows(item, rows, k, row, values);
    }
  }

  void copy_nvfp4(const Item& item, const LogicalTensor& tensor) {
    Nvfp4Matrix matrix = read_nvfp4(*item.nvfp4, tensor.name);
    if (item.heads_from > 0) {
      const Nvfp4Matrix stored = matrix;
      for (int64_t row = 0; row < matrix.rows; ++row) {
        const int64_t at = interleaved_row(row, matrix.rows, item.heads_from);
        std::copy_n(stored.codes.begin() + at * matrix.k / 2, matrix.k / 2,
                    matrix.codes.begin() + row * matrix.k / 2);
        std::copy_n(stored.scales.begin() + at * matrix.k / 16, matrix.k / 16,
                    matrix.scales.begin() + row * matrix.k / 16);
      }
    }
    if (item.dtype == DType::kNVFP4)
      return write_nvfp4(item, matrix, matrix.multiplier, matrix.input_multiplier);
    std::vector<float> values(size_t(matrix.k));
    for (int64_t row = 0; row < matrix.rows; ++row) {
      dequantize_nvfp4(matrix.codes.data() + row * matrix.k / 2,
                       matrix.scales.data() + row * matrix.k / 16, matrix.k, matrix.multiplier,
                       values.data());
      encode_rows(item, matrix.rows, matrix.k, row, values);
    }
  }

  ModelWriterOptions options_;
  Source source_;
  PendingOutput output_;
  std::vector<LogicalTensor> tensors_;
  std::vector<Item> items_;
  std::map<std::string, size_t, std::less<>> index_;
  QuantizedModules modules_;
  std::unique_ptr<OutputFile> file_;
};

ModelWriter::ModelWriter(const std::string& source,
                         const std::string& out,
                         const ModelWriterOptions& options)
    : impl_(std::make_unique<Impl>(source, out, options)) {}
ModelWriter::~ModelWriter() = default;

const std::vector<LogicalTensor>& ModelWriter::tensors() const { return impl_->tensors(); }
bool ModelWriter::can_hold_nvfp4(int64_t k) const { return impl_->can_hold_nvfp4(k); }
void ModelWriter::declare_nvfp4(const std::string& name, bool with_input) {
  impl_->declare_nvfp4(name, with_input);
}
void ModelWriter::declare_values(const std::string& name, DType dtype) {
  impl_->declare_values(name, dtype);
}
void ModelWriter::begin() { impl_->begin(); }
void ModelWriter::write(const Nvfp4Matrix& matrix) { impl_->write(matrix); }
void ModelWriter::write_values(const std::string& name,
                               int64_t row,
                               std::span<const float> values) {
  impl_->write_values(name, row, values);
}
void ModelWriter::commit(const std::function<void(int64_t, int64_t)>& progress) {
  impl_->commit(progress);
}
int64_t ModelWriter::data_bytes() const { return impl_->data_bytes(); }

void convert_model(const std::string& source,
                   const std::string& out,
                   const ModelWriterOptions& options) {
  ModelWriter writer(source, out, options);
  writer.begin();
  writer.commit();
}

}  // namespace longspur::io
