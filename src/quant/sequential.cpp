#include "quant/sequential.h"

#include <utility>

#include "quant/retarget.h"

namespace longspur::quant {

namespace qgemm = kernels::qgemm;

namespace {

Product& product_of(PackedLayer& layer, Site site) {
  switch (site) {
    case Site::kQkv:
      return layer.qkv;
    case Site::kOutput:
      return layer.output;
    case Site::kGateUp:
      return layer.gate_up;
    case Site::kDown:
      break;
  }
  return layer.down;
}

// y += x W^T, without the bias.
void add_product(const Matrix& x, const Product& w, Matrix& y, ThreadPool& pool) {
  qgemm::MatmulArgs args;
  args.x = x.values.data();
  args.t = x.rows;
  args.ldx = x.width;
  args.y = y.values.data();
  args.ldy = y.width;
  args.accumulate = true;
  qgemm::matmul(pool, *w.weight, args);
}

// Whether the residual stream takes the product's output.
bool joins_stream(Site site) { return site == Site::kOutput || site == Site::kDown; }

}  // namespace

SequentialLayer::SequentialLayer(const LayerWeights& weights,
                                 const InputRecorder& inputs,
                                 Matrix drift,
                                 const ConvertOptions& options,
                                 const KeptSites& kept,
                                 PackedLayer& packed,
                                 ThreadPool& pool)
    : weights_(weights),
      inputs_(inputs),
      drift_(std::move(drift)),
      options_(options),
      kept_(kept),
      packed_(packed),
      pool_(pool),
      targets_(weights) {
  result_.bias = weights.bias;
  result_.attn_norm = weights.attn_norm;
  result_.ffn_norm = weights.ffn_norm;
  result_.q_norm = weights.q_norm;
  result_.k_norm = weights.k_norm;
}

void SequentialLayer::reads(Site site, const Matrix& x) {
  if (kept_[size_t(site)]) {
    keep_site(weights_, site, result_);
  } else {
    InputStats stats;
    add_inputs(x, stats, pool_);
    if (options_.retarget > 0) retarget_site(site, x, stats);
    convert_site(weights_, targets_, site, &stats, options_.matrix, pool_, result_);
  }
  install(site, x);
}

void SequentialLayer::retarget_site(Site site, const Matrix& x, const InputStats& stats) {
  std::vector<float> cross, residual;
  add_gram(inputs_.of(site), x, cross, pool_);
  if (joins_stream(site)) add_gram(drift_, x, residual, pool_);
  const RetargetInputs inputs = {.gram = stats.gram.data(),
                                 .cross = cross.data(),
                                 .residual = residual.empty() ? nullptr : residual.data(),
                                 .shrinkage = shrinkage_of(options_.matrix, stats.k, stats.tokens),
                                 .strength = options_.retarget};
  const RoleRange roles = roles_of(site);
  for (int role = roles.begin; role < roles.end; ++role) {
    const Matrix& w = weights_.linear[size_t(role)];
    targets_.linear[size_t(role)].values =
        retarget({w.values.data(), w.rows, w.width}, inputs, pool_);
  }
}

void SequentialLayer::install(Site site, const Matrix& x) {
  Product& running = product_of(packed_, site);
  const bool moves_drift = site == Site::kOutput;
  if (moves_drift) add_product(inputs_.of(site), running, drift_, pool_);
  LayerWeights quantised;
  quantised.bias = weights_.bias;
  const RoleRange roles = roles_of(site);
  for (int role = roles.begin; role < roles.end; ++role)
    quantised.linear[size_t(role)] = values_of(result_.linear[size_t(role)], pool_);
  running = pack_site(quantised, site, pool_);
  if (!moves_drift) return;
  Matrix own(x.rows, drift_.width);
  add_product(x, running, own, pool_);
  for (size_t i = 0; i < own.values.size(); ++i) drift_.values[i] -= own.values[i];
}

}  // namespace longspur::quant
