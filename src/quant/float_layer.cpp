#include "quant/float_layer.h"

#include <cmath>
#include <cstring>
#include <exception>

#include "base/error.h"

namespace longspur::quant {

namespace qgemm = kernels::qgemm;

namespace {

constexpr std::array<RoleRange, kSites> kSiteRoles = {{{0, 3}, {3, 4}, {4, 6}, {6, 7}}};

const models::TensorSource& bias_of(const models::LayerTensors& t, Role role) {
  const std::array<const models::TensorSource*, kRoles> sources = {
      &t.q_bias, &t.k_bias, &t.v_bias, &t.output_bias, &t.gate_bias, &t.up_bias, &t.down_bias};
  return *sources[size_t(role)];
}

Matrix read_matrix(const models::TensorSource& source) {
  Matrix matrix(source.n(), source.k());
  const models::Rows rows = models::read_rows(source, DType::kF32);
  std::memcpy(matrix.values.data(), rows.data, matrix.values.size() * sizeof(float));
  for (size_t i = 0; i < matrix.values.size(); ++i) {
    require(std::isfinite(matrix.values[i]), source.tensor->name, ": found ", matrix.values[i],
            " in row ", int64_t(i) / matrix.width, ", expected finite weights");
  }
  return matrix;
}

}  // namespace

RoleRange roles_of(Site site) { return kSiteRoles[size_t(site)]; }

Site site_of(Role role) {
  int site = 0;
  while (int(role) >= kSiteRoles[size_t(site)].end) ++site;
  return Site(site);
}

const models::TensorSource& source_of(const models::LayerTensors& t, Role role) {
  const std::array<const models::TensorSource*, kRoles> sources = {
      &t.q, &t.k, &t.v, &t.output, &t.gate, &t.up, &t.down};
  return *sources[size_t(role)];
}

LayerWeights load_layer(const models::LayerTensors& tensors, ThreadPool& pool) {
  LayerWeights weights;
  // What goes wrong is told after the team has met: a thread that left would be waited for.
  std::array<std::exception_ptr, kRoles> errors;
  pool.run([&](Team& team) {
    team.dynamic_for(kRoles, 1, [&](int64_t index, int64_t) {
      const auto role = Role(index);
      try {
        weights.at(role) = read_matrix(source_of(tensors, role));
        weights.bias[size_t(index)] = models::read_vector(bias_of(tensors, role));
      } catch (...) {
        errors[size_t(index)] = std::current_exception();
      }
    });
  });
  for (const std::exception_ptr& error : errors)
    if (error) std::rethrow_exception(error);
  weights.attn_norm = models::read_vector(tensors.attn_norm);
  weights.ffn_norm = models::read_vector(tensors.ffn_norm);
  weights.q_norm = models::read_vector(tensors.q_norm);
  weights.k_norm = models::read_vector(tensors.k_norm);
  return weights;
}

Product pack_site(const LayerWeights& weights, Site site, ThreadPool& pool) {
  Product product;
  product.site = site;
  std::vector<qgemm::WeightRows> parts;
  const RoleRange roles = roles_of(site);
  bool any_bias = false;
  for (int role = roles.begin; role < roles.end; ++role) {
    const Matrix& w = weights.linear[size_t(role)];
    parts.push_back(
        {DType::kF32, reinterpret_cast<const std::byte*>(w.values.data()), w.rows, w.width});
    any_bias = any_bias || !weights.bias[size_t(role)].empty();
  }
  product.weight = qgemm::pack(parts, pool);
  for (int role = roles.begin; any_bias && role < roles.end; ++role) {
    std::vector<float> bias = weights.bias[size_t(role)];
    bias.resize(size_t(weights.linear[size_t(role)].rows), 0.0f);
    product.bias.insert(product.bias.end(), bias.begin(), bias.end());
  }
  return product;
}

PackedLayer pack_layer(const LayerWeights& weights, ThreadPool& pool) {
  PackedLayer layer;
  layer.attn_norm = weights.attn_norm;
  layer.ffn_norm = weights.ffn_norm;
  layer.q_norm = weights.q_norm;
  layer.k_norm = weights.k_norm;
  layer.qkv = pack_site(weights, Site::kQkv, pool);
  layer.output = pack_site(weights, Site::kOutput, pool);
  layer.gate_up = pack_site(weights, Site::kGateUp, pool);
  layer.down = pack_site(weights, Site::kDown, pool);
  return layer;
}

}  // namespace longspur::quant
