// Any bytes as a .gguf file, through everything that opening a model does with it: header,
// metadata, configuration, tensor roles, rows as the kernels get them.
#include <cstdint>

#include "fuzz/memory_file.h"
#include "fuzz/read_tensors.h"
#include "io/files/gguf.h"
#include "io/files/model_config.h"
#include "models/decoder_tensors.h"

namespace {

using namespace longspur;

void read_rows(const models::TensorSource& source) {
  if (!source) return;
  const models::Rows rows = models::read_rows(source, DType::kF32);
  fuzz::promise(rows.n == source.n() && rows.k == source.k());
  models::read_rows(source, DType::kBF16);
  models::read_rows(source, source.scale == 1.0f ? source.tensor->dtype : DType::kF32);
}

void read_model(const io::GgufFile& file) {
  const io::ModelConfig config = io::model_config_from_gguf(file);
  io::generation_defaults_from_gguf(file);
  const models::DecoderTensors tensors = models::find_decoder_tensors(file, config);
  fuzz::promise(int64_t(tensors.layers.size()) == config.layers);
  read_rows(tensors.embedding);
  read_rows(tensors.head);
  for (const models::LayerTensors& layer : tensors.layers) {
    for (const auto* source : {&layer.q, &layer.k, &layer.v, &layer.output, &layer.down})
      read_rows(*source);
    models::read_vector(layer.attn_norm);
    models::read_vector(layer.q_bias);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const fuzz::MemoryFile memory("gguf");
  memory.assign({reinterpret_cast<const char*>(data), size});
  try {
    const auto file = io::GgufFile::open(memory.path());
    fuzz::read_tensors(*file);
    read_model(*file);
  } catch (const Error&) {
  }
  return 0;
}
