#include "ops/nvfp4_packed.h"

#include <ATen/ops/empty.h>

#include "kernels/common/cuda/device.h"
#include "kernels/nvfp4/cuda/matmul.h"
#include "ops/device_stream.h"

namespace longspur::ops {

namespace {

constexpr std::string_view kOp = "nvfp4_linear";

// Whether launches are being recorded; older torch cannot say, and then the wait below fails.
template <class Stream>
bool recording(const Stream& stream) {
  if constexpr (requires { stream.is_capturing(); }) {
    return stream.is_capturing();
  } else {
    return false;
  }
}

int64_t budget(const at::Device& device) {
  int64_t free = 0, total = 0;
  check_launch(kOp, kernels::device_memory(device.index(), free, total));
  return total / 4;
}

}  // namespace

PackedWeights& PackedWeights::instance() {
  static auto* const packed = new PackedWeights;
  return *packed;
}

void PackedWeights::drop_dead() {
  std::erase_if(entries_, [](const auto& item) {
    return item.second.codes.expired() || item.second.scales.expired();
  });
}

int64_t PackedWeights::bytes_on(const at::Device& device) const {
  int64_t bytes = 0;
  for (const auto& [key, entry] : entries_)
    if (entry.packed.device() == device) bytes += entry.packed.numel();
  return bytes;
}

at::Tensor PackedWeights::find_or_pack(const at::Tensor& codes, const at::Tensor& scales) {
  if (codes.is_inference() || scales.is_inference() || !codes.is_contiguous() ||
      !scales.is_contiguous())
    return {};
  const std::lock_guard lock(mutex_);
  const int64_t n = codes.size(0), k = codes.size(1) * 2;
  const Key key{codes.const_data_ptr(), scales.const_data_ptr(), n, k};
  const auto found = entries_.find(key);
  if (found != entries_.end()) {
    const Entry& entry = found->second;
    if (!entry.codes.expired() && !entry.scales.expired() &&
        entry.codes_version == codes._version() && entry.scales_version == scales._version())
      return entry.packed;
    entries_.erase(found);
  }
  drop_dead();
  const c10::Stream stream = device_stream(kOp, codes);
  const int64_t bytes = kernels::nvfp4::cuda::packed_bytes(n, k);
  if (recording(stream) || bytes_on(codes.device()) + bytes > budget(codes.device())) return {};

  kernels::nvfp4::cuda::Weights weights;
  weights.codes = codes.const_data_ptr<uint8_t>();
  weights.scales = static_cast<const uint8_t*>(scales.const_data_ptr());
  weights.n = n;
  weights.k = k;
  const at::Tensor packed = at::empty({bytes}, codes.options());
  check_launch(
      kOp, kernels::nvfp4::cuda::pack(weights, packed.mutable_data_ptr(), stream.native_handle()));
  stream
      .synchronize();  // other streams may read it next, and products before earlier work has ended
  entries_.emplace(
      key, Entry{codes.storage().getWeakStorageImpl(), scales.storage().getWeakStorageImpl(),
                 codes._version(), scales._version(), packed});
  return packed;
}

}  // namespace longspur::ops
