#include "plain_read.h"

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "base/error.h"

namespace longspur::bench {

namespace {

constexpr int64_t kBytes = int64_t(2) << 30;

void check(cudaError_t error) {
  if (error != cudaSuccess) throw Error(concat("plain read: ", cudaGetErrorString(error)));
}

__global__ void fill_kernel(uint32_t* data, int64_t n) {
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < n;
       i += int64_t(gridDim.x) * blockDim.x)
    data[i] = uint32_t(i) * 2654435761u;
}

__global__ void read_kernel(const uint4* data, int64_t n, uint32_t* sink) {
  uint32_t sum = 0;
  const int64_t stride = int64_t(gridDim.x) * blockDim.x;
#pragma unroll 8
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += stride) {
    const uint4 v = __ldcs(data + i);
    sum ^= v.x ^ v.y ^ v.z ^ v.w;
  }
  if (sum == 0x12345678u) *sink = sum;  // keeps the loads alive
}

float timed_read(const uint4* data, uint32_t* sink, cudaEvent_t begin, cudaEvent_t end) {
  check(cudaEventRecord(begin));
  read_kernel<<<132 * 16, 256>>>(data, kBytes / int64_t(sizeof(uint4)), sink);
  check(cudaGetLastError());
  check(cudaEventRecord(end));
  check(cudaEventSynchronize(end));
  float ms = 0;
  check(cudaEventElapsedTime(&ms, begin, end));
  return ms;
}

}  // namespace

PlainRead plain_read() {
  cudaDeviceProp properties{};
  check(cudaGetDeviceProperties(&properties, 0));
  int clock_khz = 0;
  check(cudaDeviceGetAttribute(&clock_khz, cudaDevAttrClockRate, 0));
  void *data = nullptr, *sink = nullptr;
  check(cudaMalloc(&data, size_t(kBytes)));
  check(cudaMalloc(&sink, sizeof(uint32_t)));
  fill_kernel<<<1024, 256>>>(static_cast<uint32_t*>(data), kBytes / 4);
  cudaEvent_t begin, end;
  check(cudaEventCreate(&begin));
  check(cudaEventCreate(&end));
  std::vector<float> times;
  float total = 0;
  while (total < 370.0f) {  // 0.12 s of warm-up, then 0.25 s
    const float ms =
        timed_read(static_cast<const uint4*>(data), static_cast<uint32_t*>(sink), begin, end);
    if (total >= 120.0f) times.push_back(ms);
    total += ms;
  }
  check(cudaEventDestroy(begin));
  check(cudaEventDestroy(end));
  check(cudaFree(data));
  check(cudaFree(sink));
  std::nth_element(times.begin(), times.begin() + int64_t(times.size() / 2), times.end());
  return {properties.name, double(kBytes) / times[times.size() / 2] / 1e9, clock_khz / 1e3};
}

}  // namespace longspur::bench
