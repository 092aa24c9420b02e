// Block-importance estimators on a model's own queries and keys: the measurements behind
// docs/xattention.md's table.
//
//   xattn_study MODEL PROMPTS.json OUTPUT.json
//
// PROMPTS: [{"name", "tokens": [...], "layers": [...], "quote": [begin, tokens] or null,
//             "copy_only": bool}, ...]
//
// A quote is where the passage stands that the prompt's last 128 tokens repeat; prompts that are
// copy_only count for nothing else. One dense fp32 pass a prompt;
// in each listed layer every head is a case. Rows that count: query blocks of the last three
// quarters, sink block and diagonal forced.
//   recall  share of the true mass (exact softmax) that the best-scored blocks keep, at a share of
//           the row's visible blocks
//   d90     density at which the mean recall over all cases reaches .90 when tau is swept
//   l1      sum |o - o_dense| / sum |o_dense| at 10 %, mean over cases
//   copy    of the attention of the last query block on the quoted span, what is kept; over heads
//           with at least 5 % of their mass there
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>

#include "base/error.h"
#include "base/shape.h"
#include "engine/model_bundle.h"
#include "kernels/xattn/api.h"
#include "quant/layer_attention.h"

namespace longspur::bench {
namespace {

namespace xattn = kernels::xattn;
using kernels::kQueryBlock;
using Json = nlohmann::json;

constexpr double kCopyMass = 0.05;
const std::vector<double> kShares = {0.05, 0.10, 0.20};
const std::vector<float> kTaus = {0.5f, 0.6f,  0.7f,  0.75f, 0.8f,  0.84f, 0.88f,
                                  0.9f, 0.92f, 0.94f, 0.96f, 0.97f, 0.98f, 0.99f};
constexpr size_t kTau90 = 7;

// Sums over cases of one estimator.
struct Sums {
  int64_t cases = 0, copies = 0;
  std::vector<double> recall = std::vector<double>(kShares.size());
  std::vector<double> tau_density = std::vector<double>(kTaus.size());
  std::vector<double> tau_recall = std::vector<double>(kTaus.size());
  double l1 = 0, copy10 = 0, copy20 = 0, copy_tau = 0, copy_density = 0;
  std::vector<double> row_recall;  // of every row at 10 %, for the tail
};

struct Prompt {
  std::string name;
  std::vector<int32_t> tokens;
  std::vector<bool> layers;
  int64_t quote_begin = -1, quote_tokens = 0;
  bool copy_only = false;
};

// One layer of one prompt: exact masses, then every estimator against them.
class Study : public quant::AttentionObserver {
 public:
  Study(const io::ModelConfig& config, ThreadPool& pool, int64_t block)
      : config_(config), pool_(pool), block_(block) {}

  void add_estimator(const std::string& name, int64_t longest) {
    estimators_.push_back({name, xattn::parse_estimator(name, 16, block_, longest)});
  }
  void set(const Prompt& prompt) { prompt_ = &prompt; }
  bool active = false;

  void attends(std::span<const int32_t> cu_seqlens,
               const quant::Matrix& qkv,
               const quant::Matrix& out) override {
    if (!active) return;
    layer_.emplace(config_, pool_, cu_seqlens, qkv, block_, config_.heads);
    n_ = qkv.rows;
    query_blocks_ = layer_->query_blocks();
    key_blocks_ = layer_->key_blocks();
    words_ = layer_->row_words();
    truth_ = layer_->masses();
    find_copy_mass(qkv);
    measure("oracle", truth_, out);
    for (const auto& [name, estimator] : estimators_) measure(name, layer_->scores(estimator), out);
  }

  std::map<std::string, Sums> sums;
  std::vector<std::string> order;

 private:
  // Mass of the last query block on the quoted span, by key block: [heads, key blocks].
  void find_copy_mass(const quant::Matrix& qkv) {
    copy_mass_.assign(size_t(config_.heads * key_blocks_), 0.0);
    if (prompt_->quote_begin < 0) return;
    const int64_t d = config_.head_dim, first = (query_blocks_ - 1) * kQueryBlock;
    const int64_t group = config_.heads / config_.kv_heads;
    const double scale = 1.0 / std::sqrt(double(d));
    pool_.run([&](Team& team) {
      team.dynamic_for(config_.heads, 1, [&](int64_t h, int64_t) {
        std::vector<double> p(static_cast<size_t>(n_));
        for (int64_t t = first; t < n_; ++t) {
          const float* q = qkv.row(t) + h * d;
          double sum = 0;
          for (int64_t j = 0; j <= t; ++j) {
            const float* k = qkv.row(j) + (config_.heads + h / group) * d;
            double dot = 0;
            for (int64_t i = 0; i < d; ++i) dot += double(q[i]) * double(k[i]);
            sum += p[size_t(j)] = std::exp(dot * scale);
          }
          for (int64_t j = prompt_->quote_begin; j < prompt_->quote_begin + prompt_->quote_tokens;
               ++j)
            copy_mass_[size_t(h * key_blocks_ + j / block_)] +=
                p[size_t(j)] / sum / double(n_ - first);
        }
      });
    });
  }

  const float* row(const std::vector<float>& scores, int64_t h, int64_t i) const {
    return scores.data() + (h * query_blocks_ + i) * key_blocks_;
  }
  int64_t visible(int64_t i) const { return kernels::visible_blocks(i, n_, n_, block_, true).end; }

  // The blocks of the highest scores, sink and diagonal among them: k of the visible ones.
  void take_best(const float* scores, int64_t i, int64_t k, uint32_t* words) const {
    const auto seen = kernels::visible_blocks(i, n_, n_, block_, true);
    std::vector<int64_t> blocks;
    int64_t kept = 0;
    std::fill_n(words, words_, 0u);
    const auto set = [&](int64_t j) {
      words[j / 32] |= 1u << (j % 32);
      ++kept;
    };
    for (int64_t j = 0; j < seen.end; ++j) {
      if (j == 0 || j >= seen.diagonal)
        set(j);
      else
        blocks.push_back(j);
    }
    std::stable_sort(blocks.begin(), blocks.end(),
                     [&](int64_t a, int64_t b) { return scores[a] > scores[b]; });
    for (const int64_t j : blocks) {
      if (kept >= k) break;
      set(j);
    }
  }

  double copy_kept(int64_t h, const uint32_t* words) const {
    const double* span = copy_mass_.data() + h * key_blocks_;
    double total = 0, kept = 0;
    for (int64_t j = 0; j < key_blocks_; ++j) {
      total += span[j];
      if (kernels::has_block(words, j)) kept += span[j];
    }
    return total > 0 ? kept / total : 1;
  }
  bool copies(int64_t h) const {
    const double* span = copy_mass_.data() + h * key_blocks_;
    double total = 0;
    for (int64_t j = 0; j < key_blocks_; ++j) total += span[j];
    return total > kCopyMass;
  }

  void measure(const std::string& name,
               const std::vector<float>& scores,
               const quant::Matrix& out) {
    if (sums.find(name) == sums.end()) order.push_back(name);
    Sums& sum = sums[name];
    for (int64_t h = 0; h < config_.heads; ++h) sum.copies += copies(h) ? 1 : 0;
    Sums ignored;
    Sums& mean = prompt_->copy_only ? ignored : sum;
    mean.cases += config_.heads;
    for (size_t s = 0; s < kShares.size(); ++s) measure_share(scores, s, mean, sum, out);
    for (size_t c = 0; c < kTaus.size(); ++c) measure_tau(scores, c, mean, sum);
  }

  void measure_share(
      const std::vector<float>& scores, size_t s, Sums& sum, Sums& copy, const quant::Matrix& out) {
    std::vector<uint32_t> words(size_t(config_.heads * query_blocks_ * words_), ~0u);
    const int64_t first = query_blocks_ / 4;
    for (int64_t h = 0; h < config_.heads; ++h) {
      double recall = 0;
      uint32_t* bits = nullptr;
      for (int64_t i = first; i < query_blocks_; ++i) {
        bits = words.data() + (h * query_blocks_ + i) * words_;
        const int64_t k = std::max<int64_t>(2, std::llround(kShares[s] * double(visible(i))));
        take_best(row(scores, h, i), i, k, bits);
        const double kept = quant::listed_share(row(truth_, h, i), bits, key_blocks_);
        recall += kept / double(query_blocks_ - first);
        if (s == 1) sum.row_recall.push_back(kept);
      }
      sum.recall[s] += recall;
      if (s == 1 && copies(h)) copy.copy10 += copy_kept(h, bits);
      if (s == 2 && copies(h)) copy.copy20 += copy_kept(h, bits);
    }
    if (s != 1 || prompt_->copy_only) return;
    const int64_t first_row = first * kQueryBlock;
    for (const double error : layer_->errors(words, out, {&first_row, 1})) sum.l1 += error;
  }

  void measure_tau(const std::vector<float>& scores, size_t c, Sums& sum, Sums& copy) const {
    xattn::SelectOptions options;
    options.block_size = block_;
    std::vector<uint32_t> words(static_cast<size_t>(words_));
    const int64_t first = query_blocks_ / 4;
    for (int64_t h = 0; h < config_.heads; ++h) {
      double recall = 0, density = 0, last_density = 0;
      for (int64_t i = first; i < query_blocks_; ++i) {
        const xattn::RowStats stats = xattn::select_row(row(scores, h, i), kTaus[c], i, n_, n_,
                                                        options, words.data(), words_);
        last_density = double(stats.kept) / double(stats.visible);
        density += last_density / double(query_blocks_ - first);
        recall += quant::listed_share(row(truth_, h, i), words.data(), key_blocks_) /
                  double(query_blocks_ - first);
      }
      sum.tau_density[c] += density;
      sum.tau_recall[c] += recall;
      if (c == kTau90 && copies(h)) {
        copy.copy_tau += copy_kept(h, words.data());
        copy.copy_density += last_density;
      }
    }
  }

  const io::ModelConfig& config_;
  ThreadPool& pool_;
  int64_t block_;
  std::vector<std::pair<std::string, xattn::Estimator>> estimators_;
  const Prompt* prompt_ = nullptr;
  std::optional<quant::LayerAttention> layer_;
  int64_t n_ = 0, query_blocks_ = 0, key_blocks_ = 0, words_ = 0;
  std::vector<float> truth_;
  std::vector<double> copy_mass_;
};

// Density at which recall reaches .90 between two taus, on a line; the last one's where none does.
double density_at_90(const Sums& sum) {
  const auto cases = double(sum.cases);
  for (size_t c = 0; c < kTaus.size(); ++c) {
    const double recall = sum.tau_recall[c] / cases, density = sum.tau_density[c] / cases;
    if (recall < 0.9) continue;
    if (c == 0) return density;
    const double before = sum.tau_recall[c - 1] / cases;
    const double from = sum.tau_density[c - 1] / cases;
    return from + (0.9 - before) / (recall - before) * (density - from);
  }
  return std::nan("");
}

Json row_json(const std::string& name, Sums sum) {
  const auto cases = double(sum.cases), copies = double(std::max<int64_t>(1, sum.copies));
  const auto tail = sum.row_recall.begin() + int64_t(sum.row_recall.size()) / 20;
  std::nth_element(sum.row_recall.begin(), tail, sum.row_recall.end());
  return {{"estimator", name},
          {"cases", sum.cases},
          {"recall_5", sum.recall[0] / cases},
          {"recall_10", sum.recall[1] / cases},
          {"recall_20", sum.recall[2] / cases},
          {"p5_10", *tail},
          {"tau_90_density", sum.tau_density[kTau90] / cases},
          {"tau_90_recall", sum.tau_recall[kTau90] / cases},
          {"density_for_90", density_at_90(sum)},
          {"l1_10", sum.l1 / cases},
          {"copies", sum.copies},
          {"copy_10", sum.copy10 / copies},
          {"copy_20", sum.copy20 / copies},
          {"copy_tau_90", sum.copy_tau / copies},
          {"copy_density", sum.copy_density / copies}};
}

std::vector<Prompt> read_prompts(const std::string& path, int64_t layers) {
  std::ifstream file(path);
  std::vector<Prompt> prompts;
  for (const Json& item : Json::parse(file)) {
    Prompt prompt;
    prompt.name = item.at("name");
    prompt.tokens = item.at("tokens").get<std::vector<int32_t>>();
    prompt.layers.resize(size_t(layers));
    for (const int64_t layer : item.at("layers")) prompt.layers.at(size_t(layer)) = true;
    if (!item.at("quote").is_null()) {
      prompt.quote_begin = item["quote"][0];
      prompt.quote_tokens = item["quote"][1];
    }
    prompt.copy_only = item.at("copy_only");
    prompts.push_back(std::move(prompt));
  }
  return prompts;
}

void run(const std::string& model_name, const std::string& prompts_path, const std::string& out) {
  const engine::ModelBundle model = engine::open_model(model_name);
  ThreadPool pool(available_threads());
  const quant::FloatDecoder decoder(model.config, model.tensors, pool);
  Json result = Json::object();
  const auto prompts = read_prompts(prompts_path, model.config.layers);
  std::map<int64_t, Study> studies;
  for (const int64_t block : {128, 64}) {
    Study& study = studies.try_emplace(block, model.config, pool, block).first->second;
    for (const char* name :
         {"antidiagonal:8", "antidiagonal:16", "antidiagonal:32", "diagonal:16", "block_mean",
          "mean", "pooled_plain:16", "pooled_plain:128", "pooled:128", "sampled:128", "sampled:64",
          "sampled:32", "sampled:16", "pooled:128+sampled:128", "pooled:128+sampled:128+mean",
          "pooled:128+outlier+sampled:128+mean", "pooled:64+sampled:64+mean"}) {
      const bool both = block == 128 || std::string(name) == "antidiagonal:16" ||
                        std::string(name) == "sampled:16" ||
                        std::string(name) == "pooled:128+sampled:128+mean";
      if (both) study.add_estimator(name, 8192);
    }
  }
  for (const Prompt& prompt : prompts) {
    quant::FloatDecoder::Batch batch = decoder.embed({{prompt.tokens}});
    for (size_t layer = 0; layer < prompt.layers.size(); ++layer) {
      std::fprintf(stderr, "%s: layer %zu of %zu\n", prompt.name.c_str(), layer,
                   prompt.layers.size());
      const quant::PackedLayer packed =
          quant::pack_layer(quant::load_layer(model.tensors.layers[layer], pool), pool);
      // The pass is repeated for the second block size: its output is the same.
      for (auto& [block, study] : studies) {
        study.set(prompt);
        study.active = prompt.layers[layer];
        quant::FloatDecoder::Batch copy = batch;
        quant::FloatDecoder::LayerOptions options;
        options.attention = &study;
        const bool last = block == studies.rbegin()->first;
        if (!last && !study.active) continue;
        decoder.run_layer(layer, packed, last ? batch : copy, options);
      }
    }
  }
  for (auto& [block, study] : studies) {
    Json rows = Json::array();
    for (const std::string& name : study.order) rows.push_back(row_json(name, study.sums[name]));
    result[std::to_string(block)] = rows;
  }
  std::ofstream(out) << result.dump(1) << "\n";
}

}  // namespace
}  // namespace longspur::bench

int main(int argc, char** argv) {
  if (argc != 4) {
    std::cerr << "usage: xattn_study MODEL PROMPTS.json OUTPUT.json\n";
    return 2;
  }
  try {
    longspur::bench::run(argv[1], argv[2], argv[3]);
  } catch (const std::exception& error) {
    std::cerr << "xattn_study: " << error.what() << "\n";
    return 1;
  }
  return 0;
}
