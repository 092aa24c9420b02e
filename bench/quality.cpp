// quality_bench MODEL TEXT [TOKENS] [WINDOW]
// Mean KL divergence (nats) and top-1 agreement of the default arithmetic against the fp32
// reference, over non-overlapping windows of a text's tokens. Prints one JSON object.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "engine/engine.h"

namespace longspur {
namespace {

struct Totals {
  double kl = 0, nll_reference = 0, nll_default = 0;
  int64_t rows = 0, agree = 0, scored = 0;
  double max_abs = 0;
};

// log softmax of one row, in double.
std::vector<double> log_softmax(const float* logits, int64_t vocab) {
  double max = -INFINITY, sum = 0;
  for (int64_t i = 0; i < vocab; ++i) max = std::max(max, double(logits[i]));
  for (int64_t i = 0; i < vocab; ++i) sum += std::exp(logits[i] - max);
  std::vector<double> result(static_cast<size_t>(vocab));
  for (int64_t i = 0; i < vocab; ++i) result[size_t(i)] = logits[i] - max - std::log(sum);
  return result;
}

void compare_row(
    const float* reference, const float* found, int64_t vocab, int64_t next, Totals& totals) {
  const std::vector<double> p = log_softmax(reference, vocab), q = log_softmax(found, vocab);
  double kl = 0;
  int64_t best_p = 0, best_q = 0;
  for (int64_t i = 0; i < vocab; ++i) {
    const auto at = size_t(i);
    kl += std::exp(p[at]) * (p[at] - q[at]);
    if (p[at] > p[size_t(best_p)]) best_p = i;
    if (q[at] > q[size_t(best_q)]) best_q = i;
    totals.max_abs = std::max(totals.max_abs, double(std::abs(reference[i] - found[i])));
  }
  totals.kl += kl;
  totals.agree += best_p == best_q;
  ++totals.rows;
  if (next >= 0) {
    totals.nll_reference -= p[size_t(next)];
    totals.nll_default -= q[size_t(next)];
    ++totals.scored;
  }
}

void run(const std::string& model, const std::string& text_path, int64_t limit, int64_t window) {
  engine::EngineOptions options;
  options.model = model;
  options.max_sequences = 1;
  options.max_context = window;
  const auto fast = engine::Engine::load(options);
  options.compute = engine::Compute::kFp32;
  const auto reference = engine::Engine::load(options);
  std::ifstream file(text_path, std::ios::binary);
  require(bool(file), text_path, ": cannot be read");
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  std::vector<int32_t> tokens = fast->tokenizer().encode(text, {.special = false});
  if (int64_t(tokens.size()) > limit) tokens.resize(size_t(limit));

  const int64_t vocab = fast->config().vocab;
  std::vector<float> expected(static_cast<size_t>(window * vocab));
  Totals totals;
  for (int64_t begin = 0; begin < int64_t(tokens.size()); begin += window) {
    const int64_t length = std::min(window, int64_t(tokens.size()) - begin);
    const auto piece = std::span<const int32_t>(tokens).subspan(size_t(begin), size_t(length));
    reference->logits(piece, 0, [&](int64_t first, int64_t rows, const float* logits) {
      std::copy(logits, logits + rows * vocab, expected.begin() + first * vocab);
    });
    fast->logits(piece, 0, [&](int64_t first, int64_t rows, const float* logits) {
      for (int64_t r = 0; r < rows; ++r) {
        const int64_t at = first + r;
        const int64_t next = at + 1 < length ? piece[size_t(at + 1)] : -1;
        compare_row(expected.data() + at * vocab, logits + r * vocab, vocab, next, totals);
      }
    });
    std::fprintf(stderr, "\r%lld / %zu tokens", static_cast<long long>(begin + length),
                 tokens.size());
  }
  std::fprintf(stderr, "\n");
  const nlohmann::ordered_json result = {
      {"model", model},
      {"tokens", totals.rows},
      {"window", window},
      {"mean_kl", totals.kl / double(totals.rows)},
      {"top1_agreement", double(totals.agree) / double(totals.rows)},
      {"max_abs_logit_diff", totals.max_abs},
      {"perplexity_fp32", std::exp(totals.nll_reference / double(totals.scored))},
      {"perplexity_default", std::exp(totals.nll_default / double(totals.scored))},
  };
  std::printf("%s\n", result.dump(1).c_str());
}

}  // namespace
}  // namespace longspur

int main(int argc, char** argv) {
  if (argc < 3 || argc > 5) {
    std::fprintf(stderr, "usage: quality_bench MODEL TEXT [TOKENS=8192] [WINDOW=1024]\n");
    return 2;
  }
  try {
    longspur::run(argv[1], argv[2], argc > 3 ? std::atoll(argv[3]) : 8192,
                  argc > 4 ? std::atoll(argv[4]) : 1024);
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "quality_bench: error: %s\n", error.what());
    return 1;
  }
}
