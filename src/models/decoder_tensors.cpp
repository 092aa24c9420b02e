#include "models/decoder_tensors.h"

#include <cmath>
#include <cstring>

#include "base/error.h"
#include "base/half.h"
#include "io/files/tensor_names.h"

namespace longspur::models {

namespace {

using Part = io::TensorRole::Part;

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

// Types that a weight may have: those whose bits say a real number.
bool is_weight_type(DType dtype) {
  switch (dtype) {
    case DType::kI64:
    case DType::kI32:
    case DType::kI16:
    case DType::kI8:
    case DType::kU64:
    case DType::kU32:
    case DType::kU16:
    case DType::kU8:
    case DType::kBool:
    case DType::kF8E8M0:
    case DType::kF6E2M3:
    case DType::kF6E3M2:
    case DType::kF4:
    case DType::kC64:
      return false;
    default:
      return true;
  }
}

// Looks tensors up and collects everything that is wrong.
class Finder {
 public:
  Finder(const io::TensorFile& file, io::NameStyle style, float fouroversix_top)
      : file_(file), style_(style), fouroversix_top_(fouroversix_top) {}

  TensorSource get(const io::TensorRole& role,
                   const std::vector<int64_t>& shape,
                   bool required = true) {
    const std::string name = io::tensor_name(style_, role);
    TensorSource source;
    try {
      source.nvfp4 = io::find_nvfp4(file_, name, fouroversix_top_);
    } catch (const Error& error) {
      problem(error.what());
      return {};
    }
    source.tensor = source.nvfp4 ? source.nvfp4->codes : file_.find(name);
    if (source.tensor == nullptr) {
      if (required) problem(name + " (missing)");
      return {};
    }
    const auto found = source.nvfp4 ? std::vector{source.n(), source.k()} : source.tensor->shape;
    if (found != shape) {
      problem(concat(name, " (found ", shape_text(found), ", expected ", shape_text(shape), ")"));
      return {};
    }
    if (!is_weight_type(source.dtype())) {
      problem(concat(name, " (found type ", dtype_info(source.dtype()).name,
                     ", expected a floating-point or GGUF block type)"));
      return {};
    }
    source.scale = source.nvfp4 ? source.nvfp4->multiplier : scale_of(name);
    return source;
  }

  TensorSource weight(int64_t layer,
                      Part part,
                      const std::vector<int64_t>& shape,
                      bool required = true) {
    return get({part, layer}, shape, required);
  }
  TensorSource bias(int64_t layer, Part part, int64_t size, bool required) {
    return get({part, layer, true}, {size}, required);
  }

  void finish() const {
    if (count_ == 0) return;
    throw Error(concat(file_.path(), ": ", count_, " tensor", count_ == 1 ? "" : "s",
                       " missing or of the wrong shape or type: ", problems_,
                       count_ > kListed ? ", ..." : ""));
  }

 private:
  static constexpr int kListed = 64;  // names in one message; a hostile file may miss thousands

  // "blk.0.attn_q.scale" beside "blk.0.attn_q.weight"
  float scale_of(const std::string& name) {
    constexpr std::string_view kWeight = ".weight";
    if (!name.ends_with(kWeight)) return 1.0f;
    const std::string scale_name = name.substr(0, name.size() - kWeight.size()) + ".scale";
    const io::TensorInfo* scale = file_.find(scale_name);
    if (scale == nullptr) return 1.0f;
    float value = 0.0f;
    if (scale->dtype == DType::kF32 && scale->elements() == 1)
      io::dequantize(scale->dtype, scale->data.data(), 1, &value);
    if (!std::isfinite(value) || value <= 0.0f)
      problem(scale_name + " (expected one positive number of type F32)");
    return value;
  }

  void problem(const std::string& text) {
    if (count_++ < kListed) problems_ += (problems_.empty() ? "" : ", ") + text;
  }

  const io::TensorFile& file_;
  io::NameStyle style_;
  float fouroversix_top_;
  std::string problems_;
  int count_ = 0;
};

LayerTensors find_layer(Finder& finder, const io::ModelConfig& c, int64_t i) {
  const int64_t q_rows = c.heads * c.head_dim, kv_rows = c.kv_heads * c.head_dim;
  LayerTensors layer;
  layer.attn_norm = finder.weight(i, Part::kAttnNorm, {c.hidden});
  layer.q = finder.weight(i, Part::kQ, {q_rows, c.hidden});
  layer.k = finder.weight(i, Part::kK, {kv_rows, c.hidden});
  layer.v = finder.weight(i, Part::kV, {kv_rows, c.hidden});
  layer.q_norm = finder.weight(i, Part::kQNorm, {c.head_dim}, c.qk_norm);
  layer.k_norm = finder.weight(i, Part::kKNorm, {c.head_dim}, c.qk_norm);
  layer.output = finder.weight(i, Part::kOutput, {c.hidden, q_rows});
  layer.ffn_norm = finder.weight(i, Part::kFfnNorm, {c.hidden});
  layer.gate = finder.weight(i, Part::kGate, {c.intermediate, c.hidden});
  layer.up = finder.weight(i, Part::kUp, {c.intermediate, c.hidden});
  layer.down = finder.weight(i, Part::kDown, {c.hidden, c.intermediate});
  // A bias that is there is used whether or not the configuration announces it.
  layer.q_bias = finder.bias(i, Part::kQ, q_rows, c.qkv_bias);
  layer.k_bias = finder.bias(i, Part::kK, kv_rows, c.qkv_bias);
  layer.v_bias = finder.bias(i, Part::kV, kv_rows, c.qkv_bias);
  layer.output_bias = finder.bias(i, Part::kOutput, c.hidden, c.output_bias);
  layer.gate_bias = finder.bias(i, Part::kGate, c.intermediate, c.mlp_bias);
  layer.up_bias = finder.bias(i, Part::kUp, c.intermediate, c.mlp_bias);
  layer.down_bias = finder.bias(i, Part::kDown, c.hidden, c.mlp_bias);
  if (c.permuted_qk) {
    layer.q.permuted_heads = layer.q_bias.permuted_heads = c.heads;
    layer.k.permuted_heads = layer.k_bias.permuted_heads = c.kv_heads;
  }
  return layer;
}

// Stored row of the model's row `row`.
int64_t stored_row(const TensorSource& source, int64_t row) {
  return io::interleaved_row(row, source.n(), source.permuted_heads);
}

// Space for n rows, which `data` then points to. Returns the bytes of a row.
int64_t own_rows(Rows& rows) {
  const int64_t row_bytes = dtype_bytes(rows.dtype, rows.k);
  rows.storage.resize(size_t(rows.n * row_bytes));
  rows.data = rows.storage.data();
  return row_bytes;
}

void store_values(const std::vector<float>& values, DType as, std::byte* to) {
  LONGSPUR_ASSERT(as == DType::kF32 || as == DType::kBF16);
  if (as == DType::kF32) {
    std::memcpy(to, values.data(), values.size() * sizeof(float));
    return;
  }
  for (size_t i = 0; i < values.size(); ++i) {
    const uint16_t bits = float_to_bf16(values[i]);
    std::memcpy(to + 2 * i, &bits, 2);
  }
}

// Rows of an NVFP4 matrix, whose block scales are checked on the way.
class NvfpRows {
 public:
  NvfpRows(const TensorSource& source, DType as)
      : source_(source), stored_(*source.nvfp4), rows_{as, source.n(), source.k(), nullptr, {}} {}

  Rows read() {
    const bool blocks = rows_.dtype == DType::kNVFP4;
    if (blocks) rows_.scale = source_.scale;
    if (blocks && stored_.form == io::StoredNvfp4::Form::kGguf && source_.permuted_heads == 0) {
      borrow();
    } else if (blocks) {
      LONGSPUR_ASSERT(rows_.k % dtype_info(DType::kNVFP4).block == 0);
      each_row(
          [&](std::byte* to) { io::to_gguf_blocks(codes_.data(), scales_.data(), rows_.k, to); });
    } else {
      std::vector<float> values(size_t(rows_.k), 0.0f);
      each_row([&](std::byte* to) {
        io::dequantize_nvfp4(codes_.data(), scales_.data(), rows_.k, source_.scale, values.data());
        store_values(values, rows_.dtype, to);
      });
    }
    check_.finish(source_.tensor->name, source_.scale);
    return std::move(rows_);
  }

 private:
  void borrow() {
    constexpr int64_t kScales = 4;  // at the beginning of each block
    const DTypeInfo& info = dtype_info(DType::kNVFP4);
    const auto* bytes = reinterpret_cast<const uint8_t*>(source_.tensor->data.data());
    for (int64_t block = 0; block < rows_.n * (rows_.k / info.block); ++block)
      check_.add(bytes + block * info.bytes, kScales);
    rows_.data = source_.tensor->data.data();
  }

  template <class Write>
  void each_row(Write write) {
    codes_.resize(size_t(rows_.k / 2));
    scales_.resize(size_t(rows_.k / 16));
    const int64_t row_bytes = own_rows(rows_);
    for (int64_t row = 0; row < rows_.n; ++row) {
      stored_.read_row(stored_row(source_, row), codes_.data(), scales_.data());
      check_.add(scales_.data(), int64_t(scales_.size()));
      write(rows_.storage.data() + row * row_bytes);
    }
  }

  const TensorSource& source_;
  const io::StoredNvfp4& stored_;
  Rows rows_;
  io::BlockScaleCheck check_;
  std::vector<uint8_t> codes_, scales_;
};

}  // namespace

DecoderTensors find_decoder_tensors(const io::TensorFile& file, const io::ModelConfig& config) {
  const auto has_embedding = [&](io::NameStyle style) {
    return file.find(io::tensor_name(style, {Part::kEmbedding})) != nullptr;
  };
  const bool gguf = !has_embedding(io::NameStyle::kHf) && has_embedding(io::NameStyle::kGguf);
  Finder finder(file, gguf ? io::NameStyle::kGguf : io::NameStyle::kHf,
                config.quantization.fouroversix_top);
  DecoderTensors tensors;
  tensors.embedding = finder.get({Part::kEmbedding}, {config.vocab, config.hidden});
  tensors.final_norm = finder.get({Part::kFinalNorm}, {config.hidden});
  if (!config.tied_embeddings)
    tensors.head = finder.get({Part::kHead}, {config.vocab, config.hidden});
  for (int64_t i = 0; i < config.layers; ++i)
    tensors.layers.push_back(find_layer(finder, config, i));
  finder.finish();
  return tensors;
}

Rows read_rows(const TensorSource& source, DType as) {
  if (source.nvfp4) return NvfpRows(source, as).read();
  const io::TensorInfo& tensor = *source.tensor;
  Rows rows{as, source.n(), source.k(), nullptr, {}};
  const int64_t stored_bytes = dtype_bytes(tensor.dtype, rows.k);
  const bool as_stored = as == tensor.dtype && source.scale == 1.0f;
  if (as_stored && source.permuted_heads == 0) {
    rows.data = tensor.data.data();
    return rows;
  }
  const int64_t row_bytes = own_rows(rows);
  std::vector<float> values(size_t(as_stored ? 0 : rows.k));
  for (int64_t row = 0; row < rows.n; ++row) {
    const std::byte* from = tensor.data.data() + stored_row(source, row) * stored_bytes;
    std::byte* to = rows.storage.data() + row * row_bytes;
    if (as_stored) {
      std::memcpy(to, from, size_t(row_bytes));
      continue;
    }
    io::dequantize(tensor.dtype, from, rows.k, values.data());
    if (source.scale != 1.0f)
      for (float& value : values) value *= source.scale;
    store_values(values, as, to);
  }
  return rows;
}

std::vector<float> read_vector(const TensorSource& source) {
  if (!source) return {};
  const int64_t n = source.n();
  std::vector<float> stored(size_t(n), 0.0f), values(size_t(n), 0.0f);
  io::dequantize(source.tensor->dtype, source.tensor->data.data(), n, stored.data());
  for (int64_t row = 0; row < n; ++row)
    values[size_t(row)] = stored[size_t(stored_row(source, row))] * source.scale;
  return values;
}

}  // namespace longspur::models
