// Work items of a CPU kernel on torch's own threads: no second pool beside it, and
// torch.set_num_threads holds.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

namespace longspur::ops {

// Calls f(item, scratch) once for each item in [0, items), on whichever thread is free next;
// scratch is that thread's own, 64-byte aligned, of scratch_bytes. Rethrows what f throws.
void for_each_item(int64_t items,
                   int64_t scratch_bytes,
                   const std::function<void(int64_t item, std::byte* scratch)>& f);

}  // namespace longspur::ops
