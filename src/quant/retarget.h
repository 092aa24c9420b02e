// Weights that make up for what the layers before have lost: when a product is quantised, its
// inputs X already come from quantised layers, and the best matrix to quantise is no longer W but
// the one whose outputs on X are nearest to what the original model computes from its own inputs
// X_full:
//
//   W' = argmin (1 - s) |X W'^T - (X_full W^T + R)|^2 + sum_ij (s H_jj + d) (W' - W)_ij^2
//      = W + (1 - s) (W (C - H) + R^T X) ((1 - s) H + s diag(H) + d I)^-1
//   H = X^T X, C = X_full^T X
//
// R [T, N], where a residual stream takes the product's output, is what the stream lacks before it
// does: original minus quantised. The idea is that of "GPTAQ" (Li et al., arXiv 2504.02692), which
// folds C - H into GPTQ's loop; solving for W' first leaves every method as it is.
#pragma once

#include <vector>

#include "base/thread_pool.h"
#include "quant/matrix.h"

namespace longspur::quant {

struct RetargetInputs {
  const float* gram = nullptr;      // [K, K] X^T X
  const float* cross = nullptr;     // [K, K] X_full^T X: row i is channel i of X_full
  const float* residual = nullptr;  // [N, K] R^T X, or null
  double damping = 0.05;            // d, of H's mean diagonal
  double shrinkage = 0.0;           // s: less faith in the calibration text, as in MatrixMethod
  double strength = 1.0;            // 0 leaves W, 1 gives W'
};

// W' [N, K]. Throws Error on a gram that is not positive definite with damping and
// shrinkage.
std::vector<float> retarget(const WeightView& w, const RetargetInputs& inputs, ThreadPool& pool);

}  // namespace longspur::quant
