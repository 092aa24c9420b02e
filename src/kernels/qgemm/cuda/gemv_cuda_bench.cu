// Bandwidth of the matrix-vector product on the shapes of an 8B decoder, beside a plain read of the
// same bytes in the same run. Weights rotate over more memory than L2 holds. Prints JSON lines.
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <vector>

#include "kernels/qgemm/cuda/gemv_cuda.h"

namespace longspur::kernels::qgemm::cuda {
namespace {

__global__ void fill_kernel(uint32_t* data, int64_t n) {
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < n;
       i += int64_t(gridDim.x) * blockDim.x) {
    uint32_t x = uint32_t(i) * 2654435761u;
    x ^= x >> 15;
    data[i] = (x & 0x807f807fu) | 0x3c003c00u;  // two bf16 of magnitude about 0.01
  }
}

__global__ void read_kernel(const uint4* data, int64_t n, uint32_t* sink) {
  uint32_t sum = 0;
  const int64_t stride = int64_t(gridDim.x) * blockDim.x;
#pragma unroll 4
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += stride) {
    const uint4 v = __ldcs(data + i);
    sum ^= v.x ^ v.y ^ v.z ^ v.w;
  }
  if (sum == 0x12345678u) *sink = sum;  // keeps the loads alive
}

// Median milliseconds of `launch(i)`, after 0.12 s of back-to-back warm-up.
double median_ms(const std::function<void(int)>& launch) {
  cudaEvent_t begin, end;
  cudaEventCreate(&begin);
  cudaEventCreate(&end);
  float total = 0;
  for (int i = 0; total < 120.0f; ++i) {
    cudaEventRecord(begin);
    for (int j = 0; j < 20; ++j) launch(j);
    cudaEventRecord(end);
    cudaEventSynchronize(end);
    float ms = 0;
    cudaEventElapsedTime(&ms, begin, end);
    total += ms;
  }
  std::vector<double> times;
  for (double sum = 0; sum < 250.0;) {
    cudaEventRecord(begin);
    for (int j = 0; j < 20; ++j) launch(j);
    cudaEventRecord(end);
    cudaEventSynchronize(end);
    float ms = 0;
    cudaEventElapsedTime(&ms, begin, end);
    times.push_back(ms / 20);
    sum += ms;
  }
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

int run() {
  constexpr int64_t kBuffer = int64_t(2) << 30;
  void *weights = nullptr, *x = nullptr, *y = nullptr;
  if (cudaMalloc(&weights, kBuffer) != cudaSuccess || cudaMalloc(&x, 1 << 22) != cudaSuccess ||
      cudaMalloc(&y, 1 << 24) != cudaSuccess) {
    std::fprintf(stderr, "gemv_cuda_bench: no device memory\n");
    return 1;
  }
  fill_kernel<<<1024, 256>>>(static_cast<uint32_t*>(weights), kBuffer / 4);
  fill_kernel<<<64, 256>>>(static_cast<uint32_t*>(x), (1 << 22) / 4);
  struct Shape {
    int64_t n, k;
  };
  for (const Shape s :
       {Shape{6144, 4096}, {4096, 4096}, {28672, 4096}, {4096, 14336}, {128256, 4096}}) {
    const int64_t bytes = s.n * s.k * 2, copies = std::max<int64_t>(1, kBuffer / bytes);
    const auto at = [&](int i) {
      return static_cast<const char*>(weights) + int64_t(i) % copies * bytes;
    };
    const double read = median_ms([&](int i) {
      read_kernel<<<132 * 8, 256>>>(reinterpret_cast<const uint4*>(at(i)), bytes / 16,
                                    static_cast<uint32_t*>(y));
    });
    for (int64_t t : {1, 2, 4, 8}) {
      const double ms = median_ms([&](int i) {
        gemv({x, at(i), nullptr, y, t, s.n, s.k, GemvResult::kBF16}, nullptr);
      });
      std::printf(
          "{\"n\": %lld, \"k\": %lld, \"t\": %lld, \"us\": %.2f, \"tb_per_s\": %.3f, "
          "\"share_of_read\": %.3f}\n",
          (long long)s.n, (long long)s.k, (long long)t, ms * 1e3, double(bytes) / ms / 1e9,
          read / ms);
    }
  }
  return cudaDeviceSynchronize() == cudaSuccess ? 0 : 1;
}

}  // namespace
}  // namespace longspur::kernels::qgemm::cuda

int main() { return longspur::kernels::qgemm::cuda::run(); }
