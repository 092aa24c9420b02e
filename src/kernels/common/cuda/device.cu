#include "kernels/common/cuda/device.h"

#include <cuda_runtime.h>

namespace longspur::kernels {

namespace {

CudaStatus status_of(cudaError_t error) {
  if (error == cudaSuccess) return nullptr;
  cudaGetLastError();  // it was taken note of; later checks must not see it again
  return cudaGetErrorString(error);
}

cudaStream_t stream_of(void* stream) { return static_cast<cudaStream_t>(stream); }

}  // namespace

CudaStatus device_count(int& count) {
  count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  return error == cudaErrorNoDevice ? status_of(cudaSuccess) : status_of(error);
}

CudaStatus use_device(int device) { return status_of(cudaSetDevice(device)); }

CudaStatus device_name(int device, std::string& name) {
  cudaDeviceProp properties{};
  const CudaStatus status = status_of(cudaGetDeviceProperties(&properties, device));
  name = properties.name;
  return status;
}

CudaStatus device_memory(int device, int64_t& free, int64_t& total) {
  int before = 0;
  if (const CudaStatus status = status_of(cudaGetDevice(&before))) return status;
  if (const CudaStatus status = status_of(cudaSetDevice(device))) return status;
  size_t free_bytes = 0, total_bytes = 0;
  const CudaStatus status = status_of(cudaMemGetInfo(&free_bytes, &total_bytes));
  free = int64_t(free_bytes);
  total = int64_t(total_bytes);
  const CudaStatus restored = status_of(cudaSetDevice(before));
  return status != nullptr ? status : restored;
}

CudaStatus LaunchGraph::begin(void* stream) {
  reset();
  return status_of(cudaStreamBeginCapture(stream_of(stream), cudaStreamCaptureModeThreadLocal));
}

CudaStatus LaunchGraph::end(void* stream) {
  cudaGraph_t graph = nullptr;
  if (const CudaStatus status = status_of(cudaStreamEndCapture(stream_of(stream), &graph)))
    return status;
  cudaGraphExec_t executable = nullptr;
  const CudaStatus status = status_of(cudaGraphInstantiate(&executable, graph, 0));
  cudaGraphDestroy(graph);
  executable_ = executable;
  return status;
}

void LaunchGraph::abandon(void* stream) {
  cudaGraph_t graph = nullptr;
  cudaStreamEndCapture(stream_of(stream), &graph);
  if (graph != nullptr) cudaGraphDestroy(graph);
  cudaGetLastError();
}

CudaStatus LaunchGraph::launch(void* stream) const {
  return status_of(cudaGraphLaunch(static_cast<cudaGraphExec_t>(executable_), stream_of(stream)));
}

void LaunchGraph::reset() {
  if (executable_ != nullptr) cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(executable_));
  executable_ = nullptr;
}

}  // namespace longspur::kernels
