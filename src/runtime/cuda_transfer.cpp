#include "runtime/cuda_transfer.h"

#include <ATen/Functions.h>

#include <bit>

namespace longspur::runtime {

bool CudaTransfer::reserve(int64_t bytes) {
  if (host_.defined() && host_.numel() >= bytes) return false;
  const auto size = int64_t(std::bit_ceil(uint64_t(bytes)));
  host_ = at::empty({size}, at::TensorOptions(at::kByte).pinned_memory(true));
  on_device_ = at::empty({size}, at::TensorOptions(at::kByte).device(device_));
  return true;
}

std::byte* CudaTransfer::host() const { return static_cast<std::byte*>(host_.data_ptr()); }
std::byte* CudaTransfer::device() const { return static_cast<std::byte*>(on_device_.data_ptr()); }

void CudaTransfer::send(int64_t bytes) {
  on_device_.narrow(0, 0, bytes).copy_(host_.narrow(0, 0, bytes), /*non_blocking=*/true);
}

void CudaTransfer::fetch(int64_t bytes) {
  host_.narrow(0, 0, bytes).copy_(on_device_.narrow(0, 0, bytes), /*non_blocking=*/true);
}

}  // namespace longspur::runtime
