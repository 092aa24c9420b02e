// H as gptq and refine use it: checked, damped, ordered by size, factored.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/error.h"
#include "quant/cholesky.h"
#include "quant/lanes.h"
#include "quant/matrix.h"

namespace longspur::quant {

namespace {

std::vector<float> diagonal_of(const Calibration& calibration) {
  const auto k = size_t(calibration.k);
  if (calibration.diagonal != nullptr) return {calibration.diagonal, calibration.diagonal + k};
  std::vector<float> diagonal(k);
  for (size_t i = 0; i < k; ++i) diagonal[i] = calibration.gram[i * (k + 1)];
  return diagonal;
}

void check_diagonal(const std::vector<float>& diagonal) {
  for (size_t i = 0; i < diagonal.size(); ++i) {
    require(std::isfinite(diagonal[i]) && diagonal[i] >= 0,
            "calibration: found a sum of squares of ", diagonal[i], " for channel ", i,
            ", expected a finite one, not negative");
  }
}

double mean(const std::vector<float>& values) {
  return std::accumulate(values.begin(), values.end(), 0.0) / double(values.size());
}

// (1 - shrinkage) H + shrinkage diag(H) + damping mean(diag(H)); the identity for an H of zeros.
std::vector<float> damped(const Calibration& calibration,
                          const std::vector<float>& diagonal,
                          const MatrixMethod& method) {
  const int64_t k = calibration.k;
  const double shrinkage = shrinkage_of(method, k, calibration.tokens);
  std::vector<float> gram(calibration.gram, calibration.gram + k * k);
  const double size = mean(diagonal);
  for (int64_t i = 0; i < k; ++i) {
    float* row = gram.data() + i * k;
    for (int64_t j = 0; j < k; ++j) {
      require(std::isfinite(row[j]), "calibration: found ", row[j], " at ", i, ", ", j,
              " of X^T X, expected finite sums");
      row[j] *= float(1.0 - shrinkage);
    }
    row[i] = size > 0 ? float(double(diagonal[size_t(i)]) + method.damping * size) : 1.0f;
  }
  return gram;
}

void check_method(const MatrixMethod& method) {
  require(std::isfinite(method.damping) && method.damping >= 0, "damping: found ", method.damping,
          ", expected a finite number, not negative");
  require(method.shrinkage == kAutomatic || (method.shrinkage >= 0 && method.shrinkage <= 1),
          "shrinkage: found ", method.shrinkage, ", expected 0 .. 1");
  require(method.beam > 0 && method.beam <= kLanes && (method.beam & (method.beam - 1)) == 0,
          "beam: found ", method.beam, ", expected a power of two, at most ", kLanes);
  require(method.beam == 1 || !method.act_order, "beam: found ", method.beam,
          " with columns out of order, expected 1");
  require(method.refine >= 0, "refine: found ", method.refine, " sweeps, expected 0 or more");
}

}  // namespace

double automatic_shrinkage(int64_t channels, int64_t tokens) {
  require(tokens > 0, "calibration: found ", tokens, " tokens, expected at least 1");
  return std::min(0.5, 0.05 + 1.5 * double(channels) / double(tokens));
}

double shrinkage_of(const MatrixMethod& method, int64_t channels, int64_t tokens) {
  return method.shrinkage == kAutomatic ? automatic_shrinkage(channels, tokens) : method.shrinkage;
}

MatrixMethod best_method() {
  MatrixMethod method;
  method.kind = Kind::kGptq;
  method.recipe.rule = kernels::nvfp4::Rule::kFullSweep;
  method.beam = 4;
  method.refine = 4;
  method.damping = 0.02;
  method.shrinkage = kAutomatic;
  return method;
}

Curvature::Curvature(const Calibration& calibration, const MatrixMethod& method, ThreadPool& pool)
    : k_(calibration.k) {
  check_method(method);
  require(k_ > 0, "calibration: found ", k_, " channels, expected at least 1");
  require(calibration.gram != nullptr || calibration.diagonal != nullptr,
          "calibration: found neither X^T X nor its diagonal, expected one of them");
  diagonal_ = diagonal_of(calibration);
  check_diagonal(diagonal_);
  if (method.kind == Kind::kRtn && method.refine == 0) return;
  require(calibration.gram != nullptr,
          "calibration: found only the diagonal of X^T X, expected all of it for gptq and refine");
  gram_ = damped(calibration, diagonal_, method);
  if (method.kind != Kind::kGptq) return;
  if (method.act_order) {
    order_.resize(size_t(k_));
    std::iota(order_.begin(), order_.end(), 0);
    std::stable_sort(order_.begin(), order_.end(), [&](int32_t a, int32_t b) {
      return diagonal_[size_t(a)] > diagonal_[size_t(b)];
    });
  }
  factor_ = inverse_factor(gram_, k_, order_, pool);
  require(!factor_.empty(), "calibration: found X^T X + ", method.damping,
          " of its mean diagonal not positive definite, expected more damping or more tokens than ",
          k_, " channels");
}

}  // namespace longspur::quant
