// The factor of an inverse that GPTQ walks along, in double.
#pragma once

#include <cstdint>
#include <vector>

#include "base/thread_pool.h"

namespace longspur::quant {

// U, upper triangular with H^-1 = U^T U, of a symmetric H [K, K], its rows and columns taken in
// `order` ([K]; empty: as they are). Zeros below the diagonal. Empty when H is not positive
// definite.
std::vector<float> inverse_factor(const std::vector<float>& h,
                                  int64_t k,
                                  const std::vector<int32_t>& order,
                                  ThreadPool& pool);

}  // namespace longspur::quant
