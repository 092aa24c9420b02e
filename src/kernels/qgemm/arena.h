// Memory of packed weights. Matrices are placed one after the other in large chunks on huge pages:
// a small matrix of its own would lie on 4 KiB pages, at whose ends prefetching stops (a plain read
// by one core: 22 GB/s on small pages, 30 on huge ones). Pages that were never written cost
// nothing.
#pragma once

#include <cstddef>
#include <memory>

namespace longspur::kernels::qgemm {

// `bytes` of memory aligned to 64; a chunk is freed with the last matrix in it. Thread-safe.
std::shared_ptr<std::byte> allocate_weights(size_t bytes);

}  // namespace longspur::kernels::qgemm
