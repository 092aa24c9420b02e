// The passes over the whole vocabulary, vectorised with run-time dispatch. The vocabulary is seen
// as blocks of kBlock logits; per-block maxima and sums let later steps skip most of it.
#pragma once

#include <cstdint>

namespace longspur::kernels::sampling::detail {

inline constexpr int64_t kBlock = 64;  // divides into whole vectors on every target

// block_max[b] = max of block b [ceil(n / kBlock)]. False when x holds a NaN (maxima undefined).
bool block_maxima(const float* x, int64_t n, float* block_max);

// weights[i] = exp((x[i] - max) * scale); block_sum[b] their sum over block b. Returns the total.
double exp_weights(
    const float* x, int64_t n, float max, float scale, float* weights, double* block_sum);

}  // namespace longspur::kernels::sampling::detail
