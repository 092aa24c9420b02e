// nvfp4_quality_bench --text FILE --licence FILE --results FILE --cache FOLDER
//                     [--model smollm2] [--windows 0,16,8,24,4] [--rows SUBSTRING] [--plan]
// Perplexity, mean KL divergence, agreement of the most likely token and difference of the negative
// log-likelihood to the original model in fp32, for every row of nvfp4_quality_rows.cpp on windows
// of 2,048 tokens of a text. One reference pass a window serves all rows. All arithmetic is fp32 on
// dequantised weights (W4A4: on activations rounded a row at a time), which is what the engine's
// exact products give up to the order of their sums.
//
// Calibration "same": 8 windows of the text after the first 32; "licence": the first 8 windows of
// the second text. Figures already in --results are not measured again: a run may be stopped at any
// time and taken up later, with more rows or windows.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <map>
#include <set>
#include <sstream>

#include "base/error.h"
#include "engine/model_bundle.h"
#include "nvfp4_quality_rows.h"
#include "nvfp4_quality_store.h"
#include "quant/budget.h"
#include "quant/divergence.h"

namespace longspur::bench {
namespace {

using quant::FloatDecoder;
using Json = nlohmann::ordered_json;
using Windows = std::vector<std::vector<int32_t>>;

constexpr size_t kWindow = 2048, kEvaluated = 32, kCalibration = 8;
constexpr int64_t kLogitRows = 256;  // rows of a variant's logits in memory at once

double now() {
  using Clock = std::chrono::steady_clock;
  return std::chrono::duration<double>(Clock::now().time_since_epoch()).count();
}

struct Options {
  std::string model = "smollm2", text, licence, results, cache, rows;
  std::vector<size_t> windows;  // empty: all
  bool plan = false;            // only say what would run
};

std::vector<size_t> parse_windows(const std::string& list) {
  std::vector<size_t> windows;
  std::istringstream stream(list);
  for (std::string item; std::getline(stream, item, ',');)
    windows.push_back(size_t(std::strtoul(item.c_str(), nullptr, 10)));
  return windows;
}

Options parse(int argc, char** argv) {
  Options options;
  std::map<std::string, std::string*> texts = {
      {"--model", &options.model},     {"--text", &options.text},   {"--licence", &options.licence},
      {"--results", &options.results}, {"--cache", &options.cache}, {"--rows", &options.rows}};
  for (int i = 1; i < argc; ++i) {
    const std::string name = argv[i];
    if (name == "--plan") {
      options.plan = true;
      continue;
    }
    require(i + 1 < argc, name, ": found nothing after it, expected a value");
    const std::string value = argv[++i];
    if (name == "--windows") {
      options.windows = parse_windows(value);
    } else {
      require(texts.count(name) == 1, name, ": not an option");
      *texts[name] = value;
    }
  }
  require(!options.text.empty() && !options.licence.empty() && !options.results.empty() &&
              !options.cache.empty(),
          "--text, --licence, --results and --cache are needed");
  return options;
}

Windows windows_of(const io::Tokenizer& tokenizer, const std::string& path, size_t at_least) {
  std::ifstream file(path, std::ios::binary);
  require(bool(file), path, ": cannot be read");
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  const std::vector<int32_t> tokens = tokenizer.encode(text, {.special = false});
  Windows windows;
  for (auto begin = tokens.begin(); tokens.end() - begin >= int64_t(kWindow);
       begin += int64_t(kWindow)) {
    windows.emplace_back(begin, begin + int64_t(kWindow));
  }
  require(windows.size() >= at_least, path, ": found ", windows.size(), " windows of ", kWindow,
          " tokens, expected ", at_least);
  return windows;
}

class Bench {
 public:
  explicit Bench(const Options& options)
      : options_(options),
        bundle_(engine::open_model(options.model)),
        pool_(available_threads()),
        decoder_(bundle_.config, bundle_.tensors, pool_),
        table_(quality_table()),
        results_(read_results(options.results)) {
    text_ = windows_of(*bundle_.tokenizer, options.text, kEvaluated + kCalibration);
    Windows licence = windows_of(*bundle_.tokenizer, options.licence, kCalibration);
    const auto first = text_.begin() + int64_t(kEvaluated);
    calibration_["same"].assign(first, first + int64_t(kCalibration));
    calibration_["licence"].assign(licence.begin(), licence.begin() + int64_t(kCalibration));
    if (options_.windows.empty())
      for (size_t i = 0; i < kEvaluated; ++i) options_.windows.push_back(i);
  }

  void run() {
    const int64_t all = missing();
    std::fprintf(stderr, "%lld passes over %zu tokens to measure\n", static_cast<long long>(all),
                 kWindow);
    if (options_.plan) return plan();
    convert();
    begin_ = now();
    for (const size_t window : options_.windows) measure_window(window, all);
  }

 private:
  bool wanted(const QualityRow& row) const {
    return row.name.find(options_.rows) != std::string::npos;
  }
  bool done(const QualityRow& row, size_t window) const {
    return results_.contains(row.name) && results_[row.name].contains(std::to_string(window));
  }
  int64_t missing() const {
    int64_t count = 0;
    for (const QualityRow& row : table_.rows)
      for (const size_t window : options_.windows) count += wanted(row) && !done(row, window);
    return count;
  }
  void plan() const {
    for (const QualityRow& row : table_.rows)
      if (wanted(row)) std::printf("%s\n", row.name.c_str());
    std::printf("each pass: about 5 s on two idle cores; conversions: 1 to 4 minutes each\n");
  }

  std::string cache_path(const std::string& name) const {
    return options_.cache + "/" + name + ".safetensors";
  }

  // Loads or makes the conversions that rows still to be measured use.
  void convert() {
    std::set<std::string> used;
    for (const QualityRow& row : table_.rows)
      for (const size_t window : options_.windows)
        if (wanted(row) && !done(row, window)) used.insert(row.weights);
    for (const char* text : {"", "same", "licence"}) {
      std::vector<QualityConversion> todo;
      for (const QualityConversion& conversion : table_.conversions) {
        if (conversion.calibration != text || used.count(conversion.name) == 0) continue;
        if (auto model = load_converted(cache_path(conversion.name))) {
          models_[conversion.name] = std::move(*model);
        } else {
          todo.push_back(conversion);
        }
      }
      convert_with(text, std::move(todo));
    }
  }

  void convert_with(const std::string& text, std::vector<QualityConversion> todo) {
    if (todo.empty()) return;
    const double begin = now();
    const Windows& windows = calibration_[text];
    std::vector<quant::Conversion> conversions;
    for (QualityConversion& entry : todo) {
      if (entry.budget_bits > 0) plan_budget(entry, windows);
      conversions.push_back(entry.conversion);
    }
    quant::convert_layers(
        decoder_, bundle_.tensors, windows, conversions,
        [&](size_t i, size_t, const quant::LayerWeights&, quant::ConvertedLayer&& layer) {
          for (quant::ConvertedMatrix& matrix : layer.linear) matrix.values = {};
          models_[todo[i].name].push_back(std::move(layer));
        },
        [&](int64_t done, int64_t total) {
          std::fprintf(stderr, "\rconverting %zu with '%s': layer %lld of %lld, %.0f s ",
                       todo.size(), text.c_str(), static_cast<long long>(done),
                       static_cast<long long>(total), now() - begin);
        });
    std::fprintf(stderr, "\n");
    for (const QualityConversion& entry : todo)
      save_converted(cache_path(entry.name), models_[entry.name]);
  }

  void plan_budget(QualityConversion& entry, const Windows& windows) {
    std::fprintf(stderr, "sensitivities for %s\n", entry.name.c_str());
    const auto costs =
        quant::measure_sensitivity(decoder_, bundle_.tensors, windows, entry.conversion, {});
    entry.conversion.kept =
        quant::plan_model_budget(bundle_.tensors, costs, entry.budget_bits, 4.5, 8.5);
  }

  // Hidden states of one window after the last layer; model: null for the original.
  FloatDecoder::Batch run_model(const std::vector<int32_t>& window,
                                const ConvertedModel* model,
                                const kernels::nvfp4::Recipe* activations) {
    FloatDecoder::Batch batch = decoder_.embed({&window, 1});
    for (size_t i = 0; i < originals_.size(); ++i) {
      const quant::PackedLayer layer =
          model == nullptr
              ? quant::pack_layer(originals_[i], pool_)
              : quant::pack_layer(weights_of((*model)[i], originals_[i], pool_), pool_);
      decoder_.run_layer(i, layer, batch, {.activations = activations});
    }
    return batch;
  }

  void measure_window(size_t index, int64_t all) {
    std::vector<const QualityRow*> rows;
    for (const QualityRow& row : table_.rows)
      if (wanted(row) && !done(row, index)) rows.push_back(&row);
    if (rows.empty()) return;
    if (originals_.empty()) {
      for (const models::LayerTensors& layer : bundle_.tensors.layers)
        originals_.push_back(quant::load_layer(layer, pool_));
    }
    const std::vector<int32_t>& window = text_.at(index);
    const FloatDecoder::Batch original = run_model(window, nullptr, nullptr);
    const quant::Matrix reference = decoder_.logits(original, 0, int64_t(kWindow));
    for (const QualityRow* row : rows) {
      const ConvertedModel* model = row->weights == "fp32" ? nullptr : &models_.at(row->weights);
      const auto batch = run_model(window, model, row->activations ? &*row->activations : nullptr);
      record(*row, index, compare(reference, batch, window));
      ++measured_;
      const double left = (now() - begin_) / double(measured_) * double(all - measured_);
      std::fprintf(stderr, "window %2zu  %-55s KL %.4f   %.0f min left\n", index, row->name.c_str(),
                   results_[row->name][std::to_string(index)]["kl"].get<double>(), left / 60);
    }
  }

  quant::Divergence compare(const quant::Matrix& reference,
                            const FloatDecoder::Batch& batch,
                            const std::vector<int32_t>& window) {
    std::vector<int32_t> next(window.begin() + 1, window.end());
    next.push_back(-1);
    quant::Divergence total;
    for (int64_t begin = 0; begin < int64_t(kWindow); begin += kLogitRows) {
      quant::Matrix part(kLogitRows, reference.width);
      std::copy(reference.row(begin), reference.row(begin) + kLogitRows * reference.width,
                part.values.begin());
      total += quant::compare_logits(
          part, decoder_.logits(batch, begin, kLogitRows),
          std::span<const int32_t>(next).subspan(size_t(begin), size_t(kLogitRows)), pool_);
    }
    return total;
  }

  void record(const QualityRow& row, size_t window, const quant::Divergence& d) {
    results_[row.name][std::to_string(window)] = {
        {"kl", d.mean_kl()}, {"nll", d.mean_nll()}, {"nll_fp32", d.mean_nll_reference()},
        {"top1", d.top1()},  {"rows", d.rows},      {"scored", d.scored}};
    write_results(options_.results, results_);
  }

  Options options_;
  engine::ModelBundle bundle_;
  ThreadPool pool_;
  FloatDecoder decoder_;
  QualityTable table_;
  Json results_;
  Windows text_;
  std::map<std::string, Windows> calibration_;
  std::map<std::string, ConvertedModel> models_;
  std::vector<quant::LayerWeights> originals_;
  double begin_ = 0;
  int64_t measured_ = 0;
};

}  // namespace
}  // namespace longspur::bench

int main(int argc, char** argv) {
  try {
    longspur::bench::Bench(longspur::bench::parse(argc, argv)).run();
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "nvfp4_quality_bench: error: %s\n", error.what());
    return 1;
  }
}
