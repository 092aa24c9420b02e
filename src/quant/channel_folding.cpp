#include "quant/channel_folding.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"

namespace longspur::quant {

namespace {

// Value channel that channel c of the output projection reads.
int64_t value_channel(const io::ModelConfig& config, int64_t c) {
  const int64_t head = c / config.head_dim, group = head / (config.heads / config.kv_heads);
  return group * config.head_dim + c % config.head_dim;
}

void divide_rows(Matrix& w, std::vector<float>& bias, const std::vector<float>& scale) {
  for (int64_t row = 0; row < w.rows; ++row) {
    for (int64_t k = 0; k < w.width; ++k) w.row(row)[k] /= scale[size_t(row)];
    if (!bias.empty()) bias[size_t(row)] /= scale[size_t(row)];
  }
}

void divide(std::vector<float>& values, const std::vector<float>& scale) {
  for (size_t i = 0; i < values.size(); ++i) values[i] /= scale[i];
}

void scale_stats(const std::vector<float>& scale, InputStats& stats) {
  const int64_t k = stats.k;
  for (int64_t i = 0; i < k; ++i) {
    for (int64_t j = 0; j < k; ++j)
      stats.gram[size_t(i * k + j)] /= scale[size_t(i)] * scale[size_t(j)];
  }
  divide(stats.absmax, scale);
  for (int64_t row = 0; row < stats.sample.rows; ++row)
    for (int64_t i = 0; i < k; ++i) stats.sample.row(row)[i] /= scale[size_t(i)];
}

std::vector<float> search_site(const io::ModelConfig& config,
                               Site site,
                               const ConvertOptions& options,
                               const LayerWeights& weights,
                               const InputStats& stats,
                               ThreadPool& pool) {
  std::vector<WeightView> linears;
  const RoleRange roles = roles_of(site);
  for (int role = roles.begin; role < roles.end; ++role) {
    const Matrix& w = weights.linear[size_t(role)];
    linears.push_back({w.values.data(), w.rows, w.width});
  }
  std::vector<float> mean = stats.diagonal();  // root mean square
  for (float& value : mean) value = std::sqrt(value / float(stats.tokens));
  std::vector<int32_t> tied;
  for (int64_t c = 0; site == Site::kOutput && c < stats.k; ++c)
    tied.push_back(int32_t(value_channel(config, c)));
  ChannelScaleSearch search;
  search.kind = *options.scales;
  search.weights = options.matrix.recipe;
  search.activations = options.activations;
  const ChannelInputs inputs = {stats.k,     stats.sample.rows,   stats.sample.values.data(),
                                mean.data(), stats.absmax.data(), tied};
  return search_channel_scales(linears, inputs, search, pool).scale;
}

}  // namespace

void fold_site(const io::ModelConfig& config,
               Site site,
               const std::vector<float>& scale,
               LayerWeights& weights,
               InputStats& stats) {
  const RoleRange roles = roles_of(site);
  for (int role = roles.begin; role < roles.end; ++role) {
    Matrix& w = weights.linear[size_t(role)];
    for (int64_t row = 0; row < w.rows; ++row)
      for (int64_t k = 0; k < w.width; ++k) w.row(row)[k] *= scale[size_t(k)];
  }
  scale_stats(scale, stats);
  switch (site) {
    case Site::kQkv:
      return divide(weights.attn_norm, scale);
    case Site::kGateUp:
      return divide(weights.ffn_norm, scale);
    case Site::kDown:
      return divide_rows(weights.at(Role::kUp), weights.bias[size_t(Role::kUp)], scale);
    case Site::kOutput: {
      std::vector<float> rows(size_t(config.kv_heads * config.head_dim), 1.0f);
      for (size_t c = 0; c < scale.size(); ++c)
        rows[size_t(value_channel(config, int64_t(c)))] = scale[c];
      return divide_rows(weights.at(Role::kV), weights.bias[size_t(Role::kV)], rows);
    }
  }
}

std::array<std::vector<float>, kSites> fold_channel_scales(const io::ModelConfig& config,
                                                           const ConvertOptions& options,
                                                           LayerWeights& weights,
                                                           LayerStats& stats,
                                                           ThreadPool& pool) {
  std::array<std::vector<float>, kSites> scales;
  // Scales on the rows of v and up come last: the search for q, k, v and gate, up has then seen the
  // rows as they were, and rows and columns do not meet.
  for (const Site site : {Site::kQkv, Site::kGateUp, Site::kOutput, Site::kDown}) {
    scales[size_t(site)] = search_site(config, site, options, weights, stats[size_t(site)], pool);
    fold_site(config, site, scales[size_t(site)], weights, stats[size_t(site)]);
  }
  return scales;
}

}  // namespace longspur::quant
