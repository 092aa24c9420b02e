// The weights of one decoder layer as fp32 matrices that conversion reads, changes and runs: loaded
// layer by layer, so that a model needs the memory of its widest layer and not of itself.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <vector>

#include "base/thread_pool.h"
#include "kernels/qgemm/api.h"
#include "models/decoder.h"
#include "models/decoder_tensors.h"

namespace longspur::quant {

// The linear layers of a decoder layer, and the four products they stand in: those of one site read
// the same input and share a tensor scale when quantised.
enum class Role { kQ, kK, kV, kOutput, kGate, kUp, kDown };
inline constexpr int kRoles = 7;
enum class Site { kQkv, kOutput, kGateUp, kDown };
inline constexpr int kSites = 4;

struct RoleRange {
  int begin, end;
};
RoleRange roles_of(Site site);
Site site_of(Role role);
const models::TensorSource& source_of(const models::LayerTensors& tensors, Role role);

// [rows, width] fp32, rows contiguous.
struct Matrix {
  int64_t rows = 0, width = 0;
  std::vector<float> values;

  Matrix() = default;
  Matrix(int64_t r, int64_t w) : rows(r), width(w), values(size_t(r * w)) {}
  float* row(int64_t i) { return values.data() + i * width; }
  const float* row(int64_t i) const { return values.data() + i * width; }
};

struct LayerWeights {
  std::array<Matrix, kRoles> linear;            // [N, K] each, rows in the model's order
  std::array<std::vector<float>, kRoles> bias;  // [N] or empty
  std::vector<float> attn_norm, ffn_norm;       // [C]
  std::vector<float> q_norm, k_norm;            // [D] or empty

  Matrix& at(Role role) { return linear[size_t(role)]; }
  const Matrix& at(Role role) const { return linear[size_t(role)]; }
};

// Dequantises every matrix of the layer. Throws Error with the tensor's name when a weight is not
// finite.
LayerWeights load_layer(const models::LayerTensors& tensors, ThreadPool& pool);

// A site's matrices, stacked and packed for the fp32 product.
struct Product {
  Site site = Site::kQkv;
  std::unique_ptr<kernels::qgemm::PackedWeight> weight;
  std::vector<float> bias;  // [N] or empty
};
using PackedLayer = models::DecoderLayer<Product, std::vector<float>>;

PackedLayer pack_layer(const LayerWeights& weights, ThreadPool& pool);
Product pack_site(const LayerWeights& weights, Site site, ThreadPool& pool);

}  // namespace longspur::quant
