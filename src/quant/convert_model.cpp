#include "quant/convert_model.h"

#include <algorithm>
#include <string_view>

#include "base/error.h"

namespace longspur::quant {

namespace {

// The weight's name, also where the file calls the codes of an NVFP4 matrix otherwise.
std::string weight_name(const models::TensorSource& source) {
  std::string name = source.tensor->name;
  for (const std::string_view codes : {"weight_packed", "quantized_weight_values"}) {
    if (name.ends_with(codes))
      return name.replace(name.size() - codes.size(), codes.size(), "weight");
  }
  return name;
}

class Saver {
 public:
  Saver(const models::DecoderTensors& tensors, const ModelJob& job)
      : tensors_(tensors), job_(job), writer_(job.source, job.out, job.writer) {
    for (size_t i = 0; i < tensors.layers.size(); ++i) declare_layer(i);
    require(nvfp4_ > 0, "model '", job.source, "': found no linear layer whose rows ",
            io::dialect_name(job.writer.dialect), " can hold as NVFP4");
    writer_.begin();
  }

  // Sites that stay as they are in the source or in high precision.
  const std::vector<KeptSites>& kept() const { return kept_; }

  void write_layer(size_t index, ConvertedLayer&& layer) {
    const models::LayerTensors& source = tensors_.layers[index];
    for (int r = 0; r < kRoles; ++r) {
      const std::string name = weight_name(source_of(source, Role(r)));
      ConvertedMatrix& matrix = layer.linear[size_t(r)];
      record(name, Role(r), index, matrix);
      if (!matrix.kept) {
        writer_.write(io::Nvfp4Matrix{name, matrix.nvfp4.n, matrix.nvfp4.k,
                                      std::move(matrix.nvfp4.codes), std::move(matrix.nvfp4.scales),
                                      matrix.nvfp4.multiplier, matrix.input_multiplier});
      } else if (budgeted(index, Role(r))) {
        writer_.write_values(name, 0, matrix.values.values);
      }
    }
    for (const Folded& vector : folded(source, layer))
      writer_.write_values(vector.source->tensor->name, 0, *vector.values);
  }

  ModelResult finish(const Progress& progress) {
    writer_.commit(progress);
    result_.bytes = writer_.data_bytes();
    result_.weight_error = squares_ > 0 ? errors_ / squares_ : 0.0;
    result_.output_error /= double(std::max<int64_t>(nvfp4_, 1));
    double bits = 0, weights = 0;
    for (const TensorResult& tensor : result_.tensors) {
      bits += 8.0 * double(tensor.bytes);
      weights += double(tensor.n * tensor.k);
    }
    result_.bits_per_weight = bits / weights;
    return std::move(result_);
  }

 private:
  // The vectors that folding channel scales changes.
  struct Folded {
    const models::TensorSource* source;
    const std::vector<float>* values;
  };
  std::vector<Folded> folded(const models::LayerTensors& source,
                             const ConvertedLayer& layer) const {
    if (!job_.conversion.options.scales) return {};
    std::vector<Folded> vectors = {{&source.attn_norm, &layer.attn_norm},
                                   {&source.ffn_norm, &layer.ffn_norm}};
    if (source.v_bias) vectors.push_back({&source.v_bias, &layer.bias[size_t(Role::kV)]});
    if (source.up_bias) vectors.push_back({&source.up_bias, &layer.bias[size_t(Role::kUp)]});
    return vectors;
  }

  bool budgeted(size_t layer, Role role) const {
    return !job_.conversion.kept.empty() && job_.conversion.kept[layer][size_t(site_of(role))];
  }

  void declare_layer(size_t index) {
    const models::LayerTensors& source = tensors_.layers[index];
    KeptSites& kept = kept_.emplace_back();
    for (int r = 0; r < kRoles; ++r) {
      const auto role = Role(r);
      const models::TensorSource& matrix = source_of(source, role);
      const std::string name = weight_name(matrix);
      bool& keeps = kept[size_t(site_of(role))];
      if (budgeted(index, role)) {
        keeps = true;
        writer_.declare_values(name, kept_type(job_.writer.dialect));
      } else if (writer_.can_hold_nvfp4(matrix.k())) {
        writer_.declare_nvfp4(name, job_.input_scales);
        ++nvfp4_;
      } else {
        keeps = true;  // copied from the source
      }
    }
    for (const Folded& vector : folded(source, {}))
      writer_.declare_values(vector.source->tensor->name, vector.source->tensor->dtype);
  }

  void record(const std::string& name, Role role, size_t layer, const ConvertedMatrix& matrix) {
    const models::TensorSource& source = source_of(tensors_.layers[layer], role);
    TensorResult entry{name, DType::kNVFP4, source.n(), source.k(), 0, matrix.report};
    if (matrix.kept)
      entry.dtype = budgeted(layer, role) ? kept_type(job_.writer.dialect) : source.dtype();
    entry.bytes = int64_t(double(entry.n * entry.k) * bits_of(entry.dtype) / 8);
    if (!matrix.kept) {
      errors_ += matrix.report.squared_error;
      squares_ += matrix.report.squares;
      result_.output_error += matrix.report.output_error;
    }
    result_.tensors.push_back(std::move(entry));
  }

  const models::DecoderTensors& tensors_;
  const ModelJob& job_;
  io::ModelWriter writer_;
  std::vector<KeptSites> kept_;
  ModelResult result_;
  double errors_ = 0, squares_ = 0;
  int64_t nvfp4_ = 0;
};

}  // namespace

DType kept_type(io::ModelDialect dialect) {
  return dialect == io::ModelDialect::kGguf ? DType::kQ8_0 : DType::kBF16;
}

double bits_of(DType dtype) {
  const DTypeInfo& info = dtype_info(dtype);
  return 8.0 * double(info.bytes) / double(info.block);
}

ModelResult convert_model(const FloatDecoder& decoder,
                          const models::DecoderTensors& tensors,
                          std::span<const std::vector<int32_t>> windows,
                          const ModelJob& job,
                          const Progress& progress) {
  Saver saver(tensors, job);
  Conversion conversion = job.conversion;
  conversion.kept = saver.kept();
  convert_layers(
      decoder, tensors, windows, {&conversion, 1},
      [&](size_t, size_t layer, const LayerWeights&, ConvertedLayer&& converted) {
        saver.write_layer(layer, std::move(converted));
      },
      progress);
  return saver.finish({});
}

bool holds_nvfp4(const models::DecoderTensors& tensors) {
  for (const models::LayerTensors& layer : tensors.layers)
    for (int role = 0; role < kRoles; ++role)
      if (source_of(layer, Role(role)).dtype() == DType::kNVFP4) return true;
  return false;
}

ModelResult copy_model(const models::DecoderTensors& tensors, const ModelJob& job) {
  io::convert_model(job.source, job.out, job.writer);
  ModelResult result;
  double bits = 0, weights = 0;
  for (const models::LayerTensors& layer : tensors.layers) {
    for (int role = 0; role < kRoles; ++role) {
      const models::TensorSource& source = source_of(layer, Role(role));
      const double size = double(source.n() * source.k());
      const auto bytes = int64_t(size * bits_of(source.dtype()) / 8);
      result.tensors.push_back(
          {weight_name(source), source.dtype(), source.n(), source.k(), bytes, {}});
      weights += size;
      bits += 8.0 * double(bytes);
    }
  }
  result.bits_per_weight = bits / weights;
  return result;
}

}  // namespace longspur::quant
