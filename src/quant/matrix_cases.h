// Matrices and inputs for the tests of the matrix methods, and their losses in double.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "base/rng.h"
#include "quant/matrix.h"

namespace longspur::quant::testing {

struct Case {
  int64_t n, k;
  std::vector<float> w;     // [N, K]
  std::vector<float> gram;  // [K, K]

  WeightView view() const { return {w.data(), n, k}; }
  Calibration calibration() const { return {gram.data(), nullptr, k}; }
  float amax() const {
    float largest = 0;
    for (const float x : w) largest = std::max(largest, std::fabs(x));
    return largest;
  }
};

// Correlated inputs of unlike size: neighbours share a component, every 13th channel is loud.
inline Case make_case(int64_t n, int64_t k, int64_t tokens, uint64_t seed) {
  Case c{n, k, std::vector<float>(size_t(n * k)), std::vector<float>(size_t(k * k))};
  Noise noise(seed);
  for (float& x : c.w) x = 0.05f * noise.next() * (1.0f + std::fabs(noise.next()));
  std::vector<float> x(static_cast<size_t>(k));
  for (int64_t t = 0; t < tokens; ++t) {
    float shared = noise.next();
    for (int64_t i = 0; i < k; ++i) {
      shared = 0.8f * shared + 0.6f * noise.next();
      x[size_t(i)] = shared * (i % 13 == 5 ? 6.0f : 0.3f + 0.01f * float(i));
    }
    for (int64_t i = 0; i < k; ++i)
      for (int64_t j = 0; j < k; ++j) c.gram[size_t(i * k + j)] += x[size_t(i)] * x[size_t(j)];
  }
  return c;
}

inline std::vector<float> values_of(const QuantizedMatrix& q) {
  ThreadPool pool(1);
  std::vector<float> out(size_t(q.n * q.k));
  dequantize(q, out.data(), pool);
  return out;
}

// (Q - W) H (Q - W)^T of one row, in double.
inline double row_loss(const Case& c,
                       const QuantizedMatrix& q,
                       const std::vector<float>& h,
                       int64_t row) {
  const std::vector<float> values = values_of(q);
  std::vector<double> e(static_cast<size_t>(c.k));
  for (int64_t i = 0; i < c.k; ++i)
    e[size_t(i)] = double(values[size_t(row * c.k + i)]) - double(c.w[size_t(row * c.k + i)]);
  double sum = 0;
  for (int64_t i = 0; i < c.k; ++i)
    for (int64_t j = 0; j < c.k; ++j)
      sum += e[size_t(i)] * double(h[size_t(i * c.k + j)]) * e[size_t(j)];
  return sum;
}
inline double loss(const Case& c, const QuantizedMatrix& q, const std::vector<float>& h) {
  double sum = 0;
  for (int64_t row = 0; row < c.n; ++row) sum += row_loss(c, q, h, row);
  return sum;
}

inline QuantizedMatrix run(const Case& c, const MatrixMethod& method, int threads = 1) {
  ThreadPool pool(threads);
  const Curvature curvature(c.calibration(), method, pool);
  return quantize_matrix(c.view(), c.amax(), &curvature, method, pool);
}

inline MatrixMethod gptq(kernels::nvfp4::Rule rule, ScaleChoice choice = ScaleChoice::kSimulated) {
  MatrixMethod method;
  method.kind = Kind::kGptq;
  method.recipe.rule = rule;
  method.choice = choice;
  return method;
}

}  // namespace longspur::quant::testing
