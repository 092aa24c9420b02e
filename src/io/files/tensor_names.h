// Names of a decoder's tensors in the two families of files.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "io/files/model_config.h"

namespace longspur::io {

enum class NameStyle { kHf, kGguf };

// What a tensor is for, whatever it is called.
struct TensorRole {
  enum class Part {
    kEmbedding,
    kFinalNorm,
    kHead,
    kAttnNorm,
    kQ,
    kK,
    kV,
    kQNorm,
    kKNorm,
    kOutput,
    kFfnNorm,
    kGate,
    kUp,
    kDown
  };
  Part part = Part::kEmbedding;
  int64_t layer = -1;  // -1: of the whole model
  bool bias = false;   // else the weight
};

std::string tensor_name(NameStyle style, const TensorRole& role);
// nullopt for a name that is none of a decoder's.
std::optional<TensorRole> tensor_role(NameStyle style, std::string_view name);

// Heads whose rows a GGUF file of this model stores permuted (models::TensorSource); 0: none.
int64_t permuted_heads(const TensorRole& role, const ModelConfig& config);

// Stored row of the model's row `row` of `rows`, where each of `heads` heads has its rotary halves
// interleaved: stored row h * D + 2 j + s is the model's h * D + s * D/2 + j.
inline int64_t interleaved_row(int64_t row, int64_t rows, int64_t heads) {
  if (heads == 0) return row;
  const int64_t dim = rows / heads, head = row / dim;
  return head * dim + 2 * (row % (dim / 2)) + row % dim / (dim / 2);
}

}  // namespace longspur::io
