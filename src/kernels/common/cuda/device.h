// The CUDA runtime for callers that see no CUDA header: what devices there are, and launches
// recorded once and replayed as one.
#pragma once

#include <cstdint>
#include <string>

#include "kernels/common/cuda/status.h"

namespace longspur::kernels {

CudaStatus device_count(int& count);
// Makes launches of this thread go to `device`; torch's own choice is not seen here, because the
// kernels are linked with a CUDA runtime of their own.
CudaStatus use_device(int device);
CudaStatus device_name(int device, std::string& name);
CudaStatus device_memory(int device, int64_t& free, int64_t& total);

// Launches of one stream, recorded. Between begin() and end() the stream only records: nothing
// runs, and whatever is no launch (an allocation, a wait) is an error.
class LaunchGraph {
 public:
  LaunchGraph() = default;
  ~LaunchGraph() { reset(); }
  LaunchGraph(const LaunchGraph&) = delete;
  LaunchGraph& operator=(const LaunchGraph&) = delete;

  CudaStatus begin(void* stream);
  CudaStatus end(void* stream);
  // Ends a recording that failed; nothing is kept.
  void abandon(void* stream);
  CudaStatus launch(void* stream) const;
  bool ready() const { return executable_ != nullptr; }
  void reset();

 private:
  void* executable_ = nullptr;
};

}  // namespace longspur::kernels
