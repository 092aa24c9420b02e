#include "ops/parallel.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>

#include "base/aligned_buffer.h"

namespace longspur::ops {

void for_each_item(int64_t items,
                   int64_t scratch_bytes,
                   const std::function<void(int64_t item, std::byte* scratch)>& f) {
  std::atomic<int64_t> next{0};
  const auto work = [&] {
    AlignedBuffer scratch{static_cast<size_t>(scratch_bytes)};
    for (int64_t item = next++; item < items; item = next++) f(item, scratch.data());
  };
  const int64_t threads = std::min<int64_t>(at::get_num_threads(), items);
  if (threads <= 1) {
    work();
    return;
  }
  at::parallel_for(0, threads, 1, [&](int64_t, int64_t) { work(); });
}

}  // namespace longspur::ops
