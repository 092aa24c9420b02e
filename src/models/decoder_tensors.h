// Which stored tensor plays which part in a decoder: names of HF folders and GGUF files mapped to
// roles, presence and shapes checked. Every backend loads its weights through this.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/dtype.h"
#include "io/files/model_config.h"
#include "io/files/nvfp4.h"
#include "io/files/tensor_file.h"

namespace longspur::models {

// One stored tensor, [N, K] (or [N] for a vector), and how to read its rows.
struct TensorSource {
  const io::TensorInfo* tensor = nullptr;  // null: the model has none; NVFP4: the codes
  // GGUF's llama family interleaves the two rotary halves of each head's rows; heads > 0 says that
  // stored row h * D + 2 j + s is row h * D + s * D/2 + j of the model.
  int64_t permuted_heads = 0;
  float scale = 1.0f;                    // multiplies every value (NVFP4: the scale of the tensor)
  std::optional<io::StoredNvfp4> nvfp4;  // where all parts of an NVFP4 matrix are

  explicit operator bool() const { return tensor != nullptr; }
  DType dtype() const { return nvfp4 ? DType::kNVFP4 : tensor->dtype; }
  int64_t n() const { return nvfp4 ? nvfp4->rows : tensor->shape[0]; }
  int64_t k() const { return nvfp4 ? nvfp4->k : tensor->shape.size() > 1 ? tensor->shape[1] : 1; }
  int64_t stored_bytes() const { return nvfp4 ? nvfp4->bytes() : int64_t(tensor->data.size()); }
};

struct LayerTensors {
  TensorSource attn_norm, q_norm, k_norm, ffn_norm;
  TensorSource q, k, v, output, gate, up, down;
  TensorSource q_bias, k_bias, v_bias, output_bias, gate_bias, up_bias, down_bias;
};

struct DecoderTensors {
  TensorSource embedding, final_norm;
  TensorSource head;  // null when tied to the embedding
  std::vector<LayerTensors> layers;
};

// Throws one Error that lists every missing tensor and every wrong shape.
DecoderTensors find_decoder_tensors(const io::TensorFile& file, const io::ModelConfig& config);

// The rows of `source` in the model's order and in the type `as`: the stored type itself (rows
// copied, or borrowed when nothing changes), or kF32 / kBF16 (dequantised). NVFP4 rows are in
// GGUF's block layout whatever file they come from, where k is a multiple of 64; their block scales
// are checked while they are read.
struct Rows {
  DType dtype;
  int64_t n, k;
  const std::byte* data;           // [n rows]
  std::vector<std::byte> storage;  // owns data unless borrowed from the file
  float scale = 1.0f;  // still to be multiplied into every value; other than 1 for kNVFP4 only
};
Rows read_rows(const TensorSource& source, DType as);

// A vector as fp32.
std::vector<float> read_vector(const TensorSource& source);

}  // namespace longspur::models
