// Small things that a step sends to the device or fetches from it: a page-locked host block and its
// copy there, grown on demand, so that one step makes one transfer.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <cstdint>

namespace longspur::runtime {

class CudaTransfer {
 public:
  explicit CudaTransfer(at::Device device) : device_(device) {}

  // Host and device memory for `bytes`; what was there is lost. True when addresses changed.
  bool reserve(int64_t bytes);
  std::byte* host() const;
  std::byte* device() const;

  // On the current stream. The host block must not be written before send() has run, nor read
  // before the stream is waited for after fetch().
  void send(int64_t bytes);
  void fetch(int64_t bytes);

 private:
  at::Device device_;
  at::Tensor host_, on_device_;  // bytes
};

}  // namespace longspur::runtime
