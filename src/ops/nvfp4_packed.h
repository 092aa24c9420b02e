// Packed copies of NVFP4 weights on CUDA, made at the first product with them and kept while they
// live: the fast kernels read that order, and torch programs hold the plain one. Private to ops/.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <mutex>
#include <tuple>

namespace longspur::ops {

// A weight is known by its storages and torch's count of changes to them: writing into it in place
// makes a new copy (writing through `.data`, which is not counted, does not).
class PackedWeights {
 public:
  // The copy of codes [N, K / 2] and scales [N, K / 16], as the caller of the operation gave them;
  // undefined where none can be kept: what changes cannot be seen, work is being recorded, or the
  // copies would take more than a quarter of the device's memory.
  at::Tensor find_or_pack(const at::Tensor& codes, const at::Tensor& scales);

  // Lives as long as the process: device memory must not be given back after the driver has gone.
  static PackedWeights& instance();

 private:
  using Key = std::tuple<const void*, const void*, int64_t, int64_t>;  // codes, scales, N, K
  struct Entry {
    c10::weak_intrusive_ptr<c10::StorageImpl> codes, scales;
    int64_t codes_version, scales_version;
    at::Tensor packed;
  };

  void drop_dead();
  int64_t bytes_on(const at::Device& device) const;

  std::mutex mutex_;
  std::map<Key, Entry> entries_;
};

}  // namespace longspur::ops
