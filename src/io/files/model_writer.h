// Writes a whole quantised model: a folder of Hugging Face's layout in one of three dialects, or a
// GGUF file. What is not declared is taken from the source as it stands there, so that a model's
// files are converted by declaring nothing.
//
//   ModelWriter writer(source, out, {.dialect = ModelDialect::kModelOpt});
//   writer.declare_nvfp4("model.layers.0.self_attn.q_proj.weight", false);
//   ...
//   writer.begin();
//   writer.write(matrix);  // every declared tensor, in any order
//   ...
//   writer.commit();
//
// Names are those of the source's weights; the target's own names, tokenizer and configuration
// follow from them. Rows go in the model's order (that of models::read_rows), also where a GGUF
// file stores them permuted. The result appears whole, under its name, or not at all: everything is
// written beside it first, synced, then renamed.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/dtype.h"
#include "io/files/nvfp4.h"

namespace longspur::io {

enum class ModelDialect { kModelOpt, kCompressedTensors, kFourOverSix, kGguf };
// "modelopt", "compressed-tensors", "fouroversix", "gguf"; UsageError on other names.
ModelDialect parse_dialect(std::string_view name);
std::string_view dialect_name(ModelDialect dialect);

struct ModelWriterOptions {
  ModelDialect dialect = ModelDialect::kModelOpt;
  bool overwrite = false;  // replace what is at `out`
  // fouroversix: largest e2m1 * e4m3 that the quantiser aimed at: 1536 (bound 256) or 2688 (448).
  float scale_top = 1536.0f;
};

// A weight or other tensor of a model, whatever parts a file stores it in.
struct LogicalTensor {
  std::string name;
  std::vector<int64_t> shape;
  DType dtype;  // kNVFP4 for a matrix in any of its forms
};

class ModelWriter {
 public:
  // source: a GGUF file or a folder. Throws UsageError when `out` exists and may not be replaced,
  // Error when the source is not a model that can be written in this dialect.
  ModelWriter(const std::string& source, const std::string& out, const ModelWriterOptions& options);
  ~ModelWriter();  // without commit(): leaves nothing behind
  ModelWriter(const ModelWriter&) = delete;
  ModelWriter& operator=(const ModelWriter&) = delete;

  // Tensors of the source, in its order.
  const std::vector<LogicalTensor>& tensors() const;

  // Whether a matrix with rows of k values can be NVFP4 in this dialect (k % 16, GGUF: k % 64).
  bool can_hold_nvfp4(int64_t k) const;

  // Tensors that the caller writes. with_input: the matrix comes with an input_multiplier. Input
  // scales are stored, and activations announced as quantised, when all NVFP4 matrices have one.
  void declare_nvfp4(const std::string& name, bool with_input);
  // dtype: kF32, kBF16, kF16, or kQ8_0 (GGUF only).
  void declare_values(const std::string& name, DType dtype);

  // After the last declaration, before the first write: checks space and creates the files.
  void begin();
  // Stores durable_multiplier of its multipliers.
  void write(const Nvfp4Matrix& matrix);
  // Rows [row, row + values.size() / k) of a tensor declared with declare_values; a vector is one
  // row. Every row once.
  void write_values(const std::string& name, int64_t row, std::span<const float> values);

  // Copies what was not declared, syncs, renames. progress(bytes done, bytes in all) may be empty.
  void commit(const std::function<void(int64_t, int64_t)>& progress = {});

  // Bytes of tensor data that the model will have, known after begin().
  int64_t data_bytes() const;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

// The whole of `source` in another dialect, NVFP4 matrices bit for bit.
void convert_model(const std::string& source,
                   const std::string& out,
                   const ModelWriterOptions& options);

}  // namespace longspur::io
