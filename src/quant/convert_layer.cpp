#include "quant/convert_layer.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <optional>

#include "base/error.h"
#include "kernels/nvfp4/codec.h"
#include "quant/channel_folding.h"

namespace longspur::quant {

namespace nvfp4 = kernels::nvfp4;
namespace qgemm = kernels::qgemm;

namespace {

constexpr float kInputTop = 2688.0f;  // 6 * 448: what engines that quantise inputs multiply by

float largest_magnitude(const Matrix& matrix) {
  float largest = 0.0f;
  for (const float value : matrix.values) largest = std::max(largest, std::abs(value));
  return largest;
}

double share_of_4(const QuantizedMatrix& q) {
  int64_t blocks = 0, fours = 0;
  for (size_t at = 0; at < q.codes.size(); at += nvfp4::kBlock / 2) {
    int largest = 0;
    for (size_t i = at; i < at + nvfp4::kBlock / 2; ++i)
      largest = std::max({largest, q.codes[i] & 7, q.codes[i] >> 4 & 7});
    blocks += largest > 0;
    fours += largest > 0 && largest < 7;
  }
  return blocks == 0 ? 0.0 : double(fours) / double(blocks);
}

double square_sum(const std::vector<float>& a, const std::vector<float>& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += double(a[i]) * double(b[i]);
  return sum;
}

// H [K, K], packed for products; null without statistics.
std::unique_ptr<qgemm::PackedWeight> packed_gram(const InputStats* stats, ThreadPool& pool) {
  if (stats == nullptr) return nullptr;
  const qgemm::WeightRows rows = {
      DType::kF32, reinterpret_cast<const std::byte*>(stats->gram.data()), stats->k, stats->k};
  return qgemm::pack({&rows, 1}, pool);
}

// tr(A H A^T)
double weighted_square(const Matrix& a, const qgemm::PackedWeight& gram, ThreadPool& pool) {
  Matrix product(a.rows, a.width);
  qgemm::MatmulArgs args;
  args.x = a.values.data();
  args.t = a.rows;
  args.ldx = a.width;
  args.y = product.values.data();
  args.ldy = a.width;
  qgemm::matmul(pool, gram, args);
  return square_sum(a.values, product.values);
}

MatrixReport report_of(const Matrix& w,
                       const QuantizedMatrix& q,
                       const qgemm::PackedWeight* gram,
                       ThreadPool& pool) {
  Matrix error(q.n, q.k);
  dequantize(q, error.values.data(), pool);
  for (size_t i = 0; i < error.values.size(); ++i) error.values[i] -= w.values[i];
  const auto ratio = [](double part, double whole) { return whole > 0 ? part / whole : 0.0; };
  MatrixReport report;
  report.share_of_4 = share_of_4(q);
  report.squared_error = square_sum(error.values, error.values);
  report.squares = square_sum(w.values, w.values);
  report.weight_error = ratio(report.squared_error, report.squares);
  if (gram != nullptr) {
    report.output_error =
        ratio(weighted_square(error, *gram, pool), weighted_square(w, *gram, pool));
  }
  return report;
}

// What the methods ask of the statistics; null where there are none or none are wanted.
std::optional<Curvature> curvature_of(const InputStats* stats,
                                      const MatrixMethod& method,
                                      ThreadPool& pool) {
  const bool wanted = method.weighted || method.kind == Kind::kGptq || method.refine > 0;
  if (stats == nullptr || !wanted) return std::nullopt;
  return Curvature({.gram = stats->gram.data(), .k = stats->k, .tokens = stats->tokens}, method,
                   pool);
}

Matrix read_matrix(const QuantizedMatrix& q, ThreadPool& pool) {
  Matrix result(q.n, q.k);
  dequantize(q, result.values.data(), pool);
  return result;
}

}  // namespace

void convert_site(const LayerWeights& weights,
                  const LayerWeights& targets,
                  Site site,
                  const InputStats* stats,
                  const MatrixMethod& method,
                  ThreadPool& pool,
                  ConvertedLayer& result) {
  const RoleRange roles = roles_of(site);
  float amax = 0.0f;
  for (int role = roles.begin; role < roles.end; ++role)
    amax = std::max(amax, largest_magnitude(weights.linear[size_t(role)]));
  const std::optional<Curvature> curvature = curvature_of(stats, method, pool);
  const auto gram = packed_gram(stats, pool);
  for (int role = roles.begin; role < roles.end; ++role) {
    const Matrix& w = targets.linear[size_t(role)];
    ConvertedMatrix& converted = result.linear[size_t(role)];
    converted.nvfp4 = quantize_matrix({w.values.data(), w.rows, w.width}, amax,
                                      curvature ? &*curvature : nullptr, method, pool);
    if (stats != nullptr) converted.input_multiplier = stats->largest() / kInputTop;
    converted.report = report_of(weights.linear[size_t(role)], converted.nvfp4, gram.get(), pool);
  }
}

void keep_site(const LayerWeights& weights, Site site, ConvertedLayer& result) {
  const RoleRange roles = roles_of(site);
  for (int role = roles.begin; role < roles.end; ++role) {
    result.linear[size_t(role)].kept = true;
    result.linear[size_t(role)].values = weights.linear[size_t(role)];
  }
}

Matrix values_of(const ConvertedMatrix& matrix, ThreadPool& pool) {
  return matrix.kept ? matrix.values : read_matrix(matrix.nvfp4, pool);
}

ConvertedLayer convert_layer(const io::ModelConfig& config,
                             const LayerWeights& original,
                             const LayerStats* stats,
                             const ConvertOptions& options,
                             const KeptSites& kept,
                             ThreadPool& pool) {
  ConvertedLayer result;
  LayerWeights scaled;
  LayerStats scaled_stats;
  if (options.scales) {
    LONGSPUR_ASSERT(stats != nullptr);
    scaled = original;
    scaled_stats = *stats;
    result.channel_scales = fold_channel_scales(config, options, scaled, scaled_stats, pool);
  }
  const LayerWeights& weights = options.scales ? scaled : original;
  if (options.scales) stats = &scaled_stats;
  result.bias = weights.bias;
  result.attn_norm = weights.attn_norm;
  result.ffn_norm = weights.ffn_norm;
  result.q_norm = weights.q_norm;
  result.k_norm = weights.k_norm;
  for (int s = 0; s < kSites; ++s) {
    if (kept[size_t(s)]) {
      keep_site(weights, Site(s), result);
    } else {
      convert_site(weights, weights, Site(s), stats != nullptr ? &(*stats)[size_t(s)] : nullptr,
                   options.matrix, pool, result);
    }
  }
  return result;
}

LayerWeights read_back(const ConvertedLayer& layer, ThreadPool& pool) {
  LayerWeights weights;
  for (size_t role = 0; role < kRoles; ++role) {
    weights.linear[role] = values_of(layer.linear[role], pool);
  }
  weights.bias = layer.bias;
  weights.attn_norm = layer.attn_norm;
  weights.ffn_norm = layer.ffn_norm;
  weights.q_norm = layer.q_norm;
  weights.k_norm = layer.k_norm;
  return weights;
}

LayerWeights read_back_unfolded(const io::ModelConfig& config,
                                const ConvertedLayer& layer,
                                ThreadPool& pool) {
  LayerWeights weights = read_back(layer, pool);
  InputStats none;
  for (int s = 0; s < kSites; ++s) {
    std::vector<float> inverse = layer.channel_scales[size_t(s)];
    for (float& value : inverse) value = 1.0f / value;
    if (!inverse.empty()) fold_site(config, Site(s), inverse, weights, none);
  }
  return weights;
}

}  // namespace longspur::quant
