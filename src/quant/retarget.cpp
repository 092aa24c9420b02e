#include "quant/retarget.h"

#include <algorithm>

#include "base/error.h"
#include "quant/cholesky.h"
#include "quant/lanes.h"

namespace longspur::quant {

namespace {

// (1 - s) H + s diag(H) + d I
std::vector<float> regularised(const RetargetInputs& inputs, int64_t k) {
  std::vector<float> result(inputs.gram, inputs.gram + k * k);
  double mean = 0;
  for (int64_t i = 0; i < k; ++i) mean += double(inputs.gram[i * k + i]) / double(k);
  for (float& value : result) value *= float(1.0 - inputs.shrinkage);
  for (int64_t i = 0; i < k; ++i)
    result[size_t(i * k + i)] = inputs.gram[i * k + i] + float(inputs.damping * mean);
  return result;
}

std::vector<float> transposed(const std::vector<float>& m, int64_t k) {
  std::vector<float> result(m.size());
  for (int64_t i = 0; i < k; ++i)
    for (int64_t j = 0; j < k; ++j) result[size_t(j * k + i)] = m[size_t(i * k + j)];
  return result;
}

// Multiplies sixteen rows by C - H, then by the inverse of the regularised H, U^T U.
struct Solver {
  int64_t k;
  std::vector<float> drift, factor, factor_columns;  // C - H, U, U^T

  // rows: [K, lanes], in and out; scratch: as large.
  void shift(const float* residual, float* rows, float* scratch) const {
    const auto size = size_t(k * kLanes);
    std::copy(residual, residual + size, scratch);
    lane_kernels().multiply(scratch, rows, drift.data(), k, k);
    std::fill(rows, rows + size, 0.0f);
    lane_kernels().multiply(rows, scratch, factor_columns.data(), k, k);
    std::fill(scratch, scratch + size, 0.0f);
    lane_kernels().multiply(scratch, rows, factor.data(), k, k);
    std::copy(scratch, scratch + size, rows);
  }
};

Solver make_solver(int64_t k, const RetargetInputs& inputs, ThreadPool& pool) {
  Solver solver{k, {}, {}, {}};
  solver.factor = inverse_factor(regularised(inputs, k), k, {}, pool);
  require(!solver.factor.empty(), "calibration: found X^T X + ", inputs.damping,
          " of its mean diagonal not positive definite, expected more damping");
  solver.factor_columns = transposed(solver.factor, k);
  solver.drift.resize(size_t(k * k));
  for (size_t i = 0; i < solver.drift.size(); ++i)
    solver.drift[i] = inputs.cross[i] - inputs.gram[i];
  return solver;
}

}  // namespace

std::vector<float> retarget(const WeightView& w, const RetargetInputs& inputs, ThreadPool& pool) {
  require(w.k > 0 && w.k % kBlock == 0, "matrix to retarget: found rows of ", w.k,
          " weights, expected a multiple of ", kBlock);
  LONGSPUR_ASSERT(inputs.gram != nullptr && inputs.cross != nullptr);
  const Solver solver = make_solver(w.k, inputs, pool);
  std::vector<float> result(w.values, w.values + w.n * w.k);
  const auto size = size_t(w.k * kLanes);
  std::vector<float> buffers(size_t(pool.size()) * 3 * size);
  pool.run([&](Team& team) {
    float* residual = buffers.data() + size_t(team.rank()) * 3 * size;
    float *rows = residual + size, *scratch = rows + size;
    team.dynamic_for(w.n, kLanes, [&](int64_t begin, int64_t end) {
      std::fill(residual, residual + 2 * size, 0.0f);
      for (int64_t row = begin; row < end; ++row) {
        for (int64_t i = 0; i < w.k; ++i) {
          const size_t at = size_t(i * kLanes + row - begin);
          rows[at] = w.values[row * w.k + i];
          if (inputs.residual != nullptr) residual[at] = inputs.residual[row * w.k + i];
        }
      }
      solver.shift(residual, rows, scratch);
      for (int64_t row = begin; row < end; ++row)
        for (int64_t i = 0; i < w.k; ++i)
          result[size_t(row * w.k + i)] += float(inputs.strength * (1.0 - inputs.shrinkage)) *
                                           rows[size_t(i * kLanes + row - begin)];
    });
  });
  return result;
}

}  // namespace longspur::quant
