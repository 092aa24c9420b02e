// Throughput of one thread by rule: gigabytes of bf16 read (quantise) or written (dequantise) a
// second, best of several runs. Prints one JSON object.
//   nvfp4_bench [rows] [K] [repeats]
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>

#include "base/half.h"
#include "base/rng.h"
#include "kernels/nvfp4/codec.h"
#include "kernels/nvfp4/kernels.h"

namespace {

using namespace longspur;
using namespace longspur::kernels::nvfp4;

double best_seconds(int repeats, const std::function<void()>& work) {
  double best = 1e30;
  for (int i = 0; i < repeats; ++i) {
    const auto start = std::chrono::steady_clock::now();
    work();
    best = std::min(
        best, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  return best;
}

struct Matrix {
  int64_t rows, k;
  std::vector<uint16_t> x;
  std::vector<uint8_t> codes, scales;
};

Matrix make_matrix(int64_t rows, int64_t k) {
  Matrix m{rows, k, {}, {}, {}};
  Noise noise(1);
  m.x.resize(size_t(rows * k));
  for (uint16_t& x : m.x) x = float_to_bf16(noise.next() + noise.next() + noise.next());
  m.codes.resize(size_t(rows * code_bytes(k)));
  m.scales.resize(size_t(rows * k / kBlock));
  return m;
}

void report(const char* isa, const char* what, double gigabytes, double seconds) {
  std::printf("%s{\"isa\": \"%s\", \"what\": \"%s\", \"gb_per_s\": %.3f}",
              isa[0] == '\0' ? "" : "  ", isa, what, gigabytes / seconds);
}

void run(Matrix& m, std::string_view isa, int repeats, bool& first) {
  limit_isa(isa);
  const double gigabytes = double(m.rows * m.k * 2) * 1e-9;
  const auto row = [&](const char* what, const std::function<void()>& work) {
    if (!first) std::printf(",\n");
    first = false;
    report(isa.data(), what, gigabytes, best_seconds(repeats, work));
  };
  QuantizeArgs args;
  args.source = {m.x.data(), DType::kBF16, m.rows, m.k, m.k, false};
  const float amax = max_magnitude(args.source, false, 0, m.rows, nullptr);
  args.amax = &amax;
  args.codes = m.codes.data();
  args.scales = m.scales.data();
  row("max_magnitude", [&] { (void)max_magnitude(args.source, false, 0, m.rows, nullptr); });
  for (const Rule rule : {Rule::kStatic6, Rule::kFourOverSix, Rule::kSweep, Rule::kFullSweep}) {
    args.recipe.rule = rule;
    row(rule_name(rule).data(), [&] { quantize(args, 0, m.rows); });
  }
  args.recipe = {};
  args.recipe.tile_2d = true;
  row("four_over_six tile_2d", [&] { quantize(args, 0, m.rows); });
  args.recipe = {};
  args.recipe.rounding = Rounding::kStochastic;
  row("four_over_six stochastic", [&] { quantize(args, 0, m.rows); });
  const float multiplier = 0.01f;
  const DequantizeArgs back{m.codes.data(), m.scales.data(), &multiplier, false, m.rows, m.k,
                            DType::kBF16,   m.x.data()};
  row("dequantize", [&] { dequantize(back, 0, m.rows); });
}

}  // namespace

int main(int argc, char** argv) {
  const auto argument = [&](int i, long fallback) {
    return argc > i ? std::strtol(argv[i], nullptr, 10) : fallback;
  };
  Matrix m = make_matrix(argument(1, 256) / 16 * 16, argument(2, 4096) / 16 * 16);
  bool first = true;
  std::printf("{\"rows\": [\n");
  for (const std::string_view isa : longspur::kernels::nvfp4::available_isas())
    run(m, isa, int(argument(3, 9)), first);
  std::printf("\n]}\n");
}
