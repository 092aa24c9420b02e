// Where a token's key and value stand in the cache's pages.
#pragma once

#include <cstdint>

#include "kernels/attention/cuda/paged_cuda.h"

namespace longspur::kernels::attention::cuda {

// First element of the key of token `position`; its value is kPageTokens * D elements further.
template <class T>
__device__ inline T* key_address(const PagedCache& cache,
                                 int64_t sequence,
                                 int64_t head,
                                 int64_t position) {
  const int64_t page = cache.block_table[(sequence * cache.kv_heads + head) * cache.max_blocks +
                                         position / kPageTokens];
  return static_cast<T*>(cache.pool) +
         (page * 2 * kPageTokens + position % kPageTokens) * cache.head_dim;
}

}  // namespace longspur::kernels::attention::cuda
