// Time of the NVFP4 products beside cuBLAS's bf16 product of the same shape, both in this process
// and in turn. Weights rotate over more memory than L2 holds; each time is the median of launches
// over 0.15 s after 0.12 s of back-to-back warm-up. Results are compared with those of the simple
// kernel first. Prints JSON lines.
//   nvfp4_matmul_cuda_bench [path of libcublas.so]
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <dlfcn.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <vector>

#include "kernels/nvfp4/cuda/matmul.h"

namespace longspur::kernels::nvfp4::cuda {
namespace {

struct Shape {
  int64_t n, k;
};

uint32_t __host__ __device__ mix(uint32_t x) {
  x ^= x >> 16;
  x *= 0x7feb352du;
  x ^= x >> 15;
  x *= 0x846ca68bu;
  return x ^ x >> 16;
}

enum class Fill { kCodes, kScales, kBF16 };

__global__ void fill_kernel(uint32_t* data, int64_t words, Fill fill, uint32_t seed) {
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < words;
       i += int64_t(gridDim.x) * blockDim.x) {
    const uint32_t r = mix(uint32_t(i) * 0x9e3779b9u + seed);
    data[i] = fill == Fill::kCodes    ? r
              : fill == Fill::kScales ? (r & 0x1f1f1f1fu) + 0x20202020u
                                      // magnitudes of 0.06 .. 1, every mantissa
                                      : (r & 0x81ff81ffu) | 0x3c003c00u | (r >> 3 & 0x01000100u);
  }
}

class Buffer {
 public:
  explicit Buffer(int64_t bytes) : bytes_(bytes) {
    if (cudaMalloc(&data_, size_t(bytes)) != cudaSuccess) data_ = nullptr;
  }
  Buffer(int64_t bytes, Fill fill, uint32_t seed) : Buffer(bytes) {
    fill_kernel<<<1024, 256>>>(static_cast<uint32_t*>(data_), bytes / 4, fill, seed);
  }
  ~Buffer() { cudaFree(data_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  uint8_t* at(int64_t offset = 0) const { return static_cast<uint8_t*>(data_) + offset; }
  int64_t bytes() const { return bytes_; }

 private:
  void* data_ = nullptr;
  int64_t bytes_;
};

// cuBLAS by its shared library: the project does not link to it.
class Cublas {
 public:
  explicit Cublas(const char* path) {
    void* library = dlopen(path, RTLD_NOW | RTLD_GLOBAL);
    if (library == nullptr) return;
    const auto create = reinterpret_cast<int (*)(void**)>(dlsym(library, "cublasCreate_v2"));
    gemm_ = reinterpret_cast<Gemm>(dlsym(library, "cublasGemmEx"));
    const auto workspace =
        reinterpret_cast<int (*)(void*, void*, size_t)>(dlsym(library, "cublasSetWorkspace_v2"));
    if (create == nullptr || gemm_ == nullptr || create(&handle_) != 0) handle_ = nullptr;
    if (handle_ != nullptr && workspace != nullptr) {  // torch's size on this card
      static const Buffer buffer(32 << 20);
      workspace(handle_, buffer.at(), size_t(buffer.bytes()));
    }
  }
  bool ready() const { return handle_ != nullptr; }
  // y[m, n] = x[m, k] w[n, k]^T, bf16.
  int run(const void* x, const void* w, void* y, int64_t m, Shape s) const {
    constexpr int kNone = 0, kTransposed = 1, kBF16 = 14, kCompute32 = 68, kDefault = -1;
    const float one = 1, zero = 0;
    return gemm_(handle_, kTransposed, kNone, int(s.n), int(m), int(s.k), &one, w, kBF16, int(s.k),
                 x, kBF16, int(s.k), &zero, y, kBF16, int(s.n), kCompute32, kDefault);
  }

 private:
  using Gemm = int (*)(void*,
                       int,
                       int,
                       int,
                       int,
                       int,
                       const void*,
                       const void*,
                       int,
                       int,
                       const void*,
                       int,
                       int,
                       const void*,
                       void*,
                       int,
                       int,
                       int,
                       int);
  void* handle_ = nullptr;
  Gemm gemm_ = nullptr;
};

double interval_ms(const std::function<void(int)>& launch, int count, int& at) {
  static cudaEvent_t begin = nullptr, end = nullptr;
  if (begin == nullptr) {
    cudaEventCreate(&begin);
    cudaEventCreate(&end);
  }
  cudaEventRecord(begin);
  for (int j = 0; j < count; ++j) launch(at++);
  cudaEventRecord(end);
  cudaEventSynchronize(end);
  float ms = 0;
  cudaEventElapsedTime(&ms, begin, end);
  return ms;
}

double median_ms(const std::function<void(int)>& launch) {
  int at = 0;
  int count = 16;
  if (interval_ms(launch, 1, at) > 0.2) count = 4;
  for (double total = 0; total < 120;) total += interval_ms(launch, count, at);
  std::vector<double> times;
  for (double sum = 0; sum < 150;) {
    const double ms = interval_ms(launch, count, at);
    times.push_back(ms / count);
    sum += ms;
  }
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

// Relative distance between two bf16 results.
double distance(const Buffer& a, const Buffer& b, int64_t count) {
  std::vector<__nv_bfloat16> x(static_cast<size_t>(count)), y(static_cast<size_t>(count));
  cudaMemcpy(x.data(), a.at(), size_t(count) * 2, cudaMemcpyDeviceToHost);
  cudaMemcpy(y.data(), b.at(), size_t(count) * 2, cudaMemcpyDeviceToHost);
  double error = 0, norm = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    const double u = double(__bfloat162float(x[i])), v = double(__bfloat162float(y[i]));
    error += (u - v) * (u - v);
    norm += v * v;
  }
  return std::sqrt(error / norm);
}

class Bench {
 public:
  explicit Bench(const Cublas& cublas)
      : cublas_(cublas),
        codes_(kCopies * kMostWeights / 2, Fill::kCodes, 1),
        scales_(kCopies * kMostWeights / 16, Fill::kScales, 2),
        dense_(4 * kMostWeights * 2, Fill::kBF16, 3),
        packed_(kCopies * kMostWeights / 16 * 9),
        x_(kMostTokens * 14336 * 2, Fill::kBF16, 4),
        x_codes_(kMostTokens * 14336 / 2, Fill::kCodes, 5),
        x_scales_(kMostTokens * 14336 / 16, Fill::kScales, 6),
        workspace_(kMostTokens * 14336 * 2),
        y_(kMostTokens * 14336 * 2),
        expected_(kMostTokens * 14336 * 2) {
    const float multipliers[2] = {0.01f, 0.02f};
    cudaMalloc(&multiplier_, sizeof(multipliers));
    cudaMemcpy(multiplier_, multipliers, sizeof(multipliers), cudaMemcpyHostToDevice);
  }

  void run(Shape s, int64_t m) {
    shape_ = s;
    copies_ = kCopies * kMostWeights / (s.n * s.k);
    for (int64_t i = 0; i < copies_; ++i) pack(weights(i, false), packed_at(i), nullptr);
    const double dense = cublas_.ready() ? time_dense(m) : 0;
    const double error = check(m);
    report("w4a16", m, true, median_ms([&](int i) { matmul(w4a16(i, m, true), nullptr); }), dense,
           error, matmul_choice(w4a16(0, m, true)));
    if (m <= 16)
      report("w4a16", m, false, median_ms([&](int i) { matmul(w4a16(i, m, false), nullptr); }),
             dense, error, matmul_choice(w4a16(0, m, false)));
    if (m >= 64)
      report("w4a4", m, true, median_ms([&](int i) { matmul(w4a4(i, m), nullptr); }), dense, error,
             matmul_choice(w4a4(0, m)));
  }

 private:
  static constexpr int64_t kMostWeights = 8192 * 8192, kCopies = 8, kMostTokens = 4096;

  uint8_t* packed_at(int64_t i) const {
    return packed_.at(i % copies_ * packed_bytes(shape_.n, shape_.k));
  }
  Weights weights(int64_t i, bool packed) const {
    const int64_t size = shape_.n * shape_.k;
    Weights w{codes_.at(i % copies_ * size / 2),
              scales_.at(i % copies_ * size / 16),
              nullptr,
              multiplier_,
              false,
              shape_.n,
              shape_.k};
    if (packed) w.packed = packed_at(i);
    return w;
  }
  MatmulArgs w4a16(int64_t i, int64_t m, bool packed) const {
    MatmulArgs args;
    args.w = weights(i, packed);
    args.x = x_.at();
    args.y = y_.at();
    args.m = m;
    return args;
  }
  MatmulArgs w4a4(int64_t i, int64_t m) const {
    MatmulArgs args = w4a16(i, m, true);
    args.x = nullptr;
    args.x_codes = x_codes_.at();
    args.x_scales = x_scales_.at();
    args.x_multiplier = multiplier_ + 1;
    args.workspace = workspace_.at();
    return args;
  }
  double time_dense(int64_t m) const {
    const int64_t bytes = shape_.n * shape_.k * 2, copies = dense_.bytes() / bytes;
    return median_ms(
        [&](int i) { cublas_.run(x_.at(), dense_.at(i % copies * bytes), y_.at(), m, shape_); });
  }
  double check(int64_t m) const {
    const int64_t tokens = std::min<int64_t>(m, 64);  // the simple kernel is slow
    MatmulArgs args = w4a16(0, m, true);
    cudaMemset(y_.at(), 0xff, size_t(m * shape_.n * 2));
    matmul(args, nullptr);
    args = w4a16(0, tokens, false);
    args.x = x_.at((m - tokens) * shape_.k * 2);
    args.y = expected_.at();
    matmul(args, nullptr);
    const Buffer last(tokens * shape_.n * 2);
    cudaMemcpy(last.at(), y_.at((m - tokens) * shape_.n * 2), size_t(tokens * shape_.n * 2),
               cudaMemcpyDeviceToDevice);
    return distance(last, expected_, tokens * shape_.n);
  }
  void report(const char* kind,
              int64_t m,
              bool packed,
              double ms,
              double dense,
              double error,
              const char* choice) const {
    const double bytes = double(shape_.n * shape_.k) * 0.5625;
    const double flops = 2.0 * double(shape_.n * shape_.k) * double(m);
    std::printf(
        "{\"kind\": \"%s\", \"weights\": \"%s\", \"n\": %lld, \"k\": %lld, \"m\": %lld, "
        "\"us\": %.2f, \"cublas_bf16_us\": %.2f, \"ratio\": %.3f, \"tb_per_s\": %.3f, "
        "\"tflop_per_s\": %.1f, \"error\": %.1e, \"choice\": \"%s\"}\n",
        kind, packed ? "packed" : "canonical", (long long)shape_.n, (long long)shape_.k,
        (long long)m, ms * 1e3, dense * 1e3, dense / ms, bytes / ms / 1e9, flops / ms / 1e9, error,
        choice);
    std::fflush(stdout);
  }

  const Cublas& cublas_;
  Buffer codes_, scales_, dense_, packed_, x_, x_codes_, x_scales_, workspace_, y_, expected_;
  float* multiplier_ = nullptr;
  Shape shape_{};
  int64_t copies_ = 0;
};

int run(const char* cublas_path) {
  cudaDeviceProp properties;
  if (cudaGetDeviceProperties(&properties, 0) != cudaSuccess) {
    std::fprintf(stderr, "nvfp4_matmul_cuda_bench: no device\n");
    return 1;
  }
  const Cublas cublas(cublas_path);
  if (!cublas.ready()) std::fprintf(stderr, "no cuBLAS at %s: no baseline\n", cublas_path);
  std::printf("{\"device\": \"%s\"}\n", properties.name);
  Bench bench(cublas);
  for (const Shape s : {Shape{8192, 8192}, {4096, 14336}, {14336, 4096}}) {
    for (const int64_t m : {1, 4, 16, 32, 64, 128, 256, 1024, 4096}) bench.run(s, m);
  }
  const cudaError_t error = cudaDeviceSynchronize();
  if (error != cudaSuccess) std::fprintf(stderr, "%s\n", cudaGetErrorString(error));
  return error == cudaSuccess ? 0 : 1;
}

}  // namespace
}  // namespace longspur::kernels::nvfp4::cuda

int main(int argc, char** argv) {
  return longspur::kernels::nvfp4::cuda::run(argc > 1 ? argv[1] : "libcublas.so.13");
}
