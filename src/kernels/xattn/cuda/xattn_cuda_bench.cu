// Time of block scores and of selection. Scores are first compared with those of the simple kernels
// on a short sequence. Each time is the median of launches over 0.25 s after 0.12 s of back-to-back
// warm-up, of random bf16 operands; a kernel that does nothing but count clock cycles runs beside
// them to tell the clock. Prints JSON lines.
//   xattn_cuda_bench [estimator length]...
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <vector>

#include "kernels/xattn/cuda/xattn_cuda.h"

namespace longspur::kernels::xattn::cuda {
namespace {

constexpr int64_t kHeads = 32, kDim = 128;

class Buffer {
 public:
  explicit Buffer(int64_t bytes) {
    if (cudaMalloc(&data_, size_t(std::max<int64_t>(bytes, 1))) != cudaSuccess) data_ = nullptr;
  }
  ~Buffer() { cudaFree(data_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  template <class T>
  T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  void* data_ = nullptr;
};

__device__ uint32_t mix(uint32_t x) {
  x ^= x >> 16;
  x *= 0x7feb352du;
  x ^= x >> 15;
  x *= 0x846ca68bu;
  return x ^ x >> 16;
}

// Sums of four uniform numbers, of variance 1; rows of `width`, `padding` elements apart.
__global__ void fill_kernel(
    __nv_bfloat16* data, int64_t rows, int width, int padding, uint32_t seed) {
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < rows * width;
       i += int64_t(gridDim.x) * blockDim.x) {
    const uint32_t a = mix(uint32_t(i) * 0x9e3779b9u + seed), b = mix(a + uint32_t(i >> 32) + 1);
    const float sum = float(a & 0xffffu) + float(a >> 16) + float(b & 0xffffu) + float(b >> 16);
    data[i / width * (width + padding) + i % width] =
        __float2bfloat16(((sum / 65536.0f) - 2.0f) * 1.732f);
  }
}

__global__ void clock_kernel(long long* cycles, unsigned long long* nanoseconds) {
  unsigned long long begin = 0, now = 0;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(begin));
  const long long from = clock64();
  do {
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
  } while (now - begin < 20000);
  *cycles = clock64() - from;
  *nanoseconds = now - begin;
}

// GHz, right after whatever ran before.
double clock_ghz() {
  static const Buffer buffer(16);
  clock_kernel<<<1, 1>>>(buffer.as<long long>(), buffer.as<unsigned long long>() + 1);
  int64_t values[2];
  cudaMemcpy(values, buffer.as<void>(), 16, cudaMemcpyDeviceToHost);
  return double(values[0]) / double(values[1]);
}

double interval_ms(const std::function<void()>& launch, int count) {
  static cudaEvent_t begin = nullptr, end = nullptr;
  if (begin == nullptr) {
    cudaEventCreate(&begin);
    cudaEventCreate(&end);
  }
  cudaEventRecord(begin);
  for (int i = 0; i < count; ++i) launch();
  cudaEventRecord(end);
  cudaEventSynchronize(end);
  float ms = 0;
  cudaEventElapsedTime(&ms, begin, end);
  return ms;
}

double median_ms(const std::function<void()>& launch) {
  const double once = interval_ms(launch, 1);
  const int count = once < 0.5 ? 16 : once < 5 ? 4 : 1;
  for (double total = 0; total < 120;) total += interval_ms(launch, count);
  std::vector<double> times;
  for (double sum = 0; sum < 250;) {
    const double ms = interval_ms(launch, count);
    times.push_back(ms / count);
    sum += ms;
  }
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

// One sequence of random operands and all that scoring and selection need.
class Problem {
 public:
  Problem(
      const std::string& estimator, int64_t length, int64_t heads, int padding, int64_t block = 128)
      : estimator_(estimator),
        length_(length),
        heads_(heads),
        groups_(std::max<int64_t>(heads / 4, 1)),
        query_blocks_(ceil_div(length, kQueryBlock)),
        key_blocks_(ceil_div(length, block)),
        q_(length * (heads_ * kDim + padding) * 2),
        k_(length * (groups_ * kDim + padding) * 2),
        lengths_(8),
        threshold_(heads * 4),
        scores_(heads * query_blocks_ * key_blocks_ * 4),
        words_(heads * query_blocks_ * BlockMask::words_of(key_blocks_) * 4),
        args_(make_args(padding, block)),
        workspace_(block_scores_workspace_bytes(args_)) {
    args_.workspace = workspace_.as<void>();
    fill_kernel<<<1024, 256>>>(q_.as<__nv_bfloat16>(), length, int(heads_ * kDim), padding, 1);
    fill_kernel<<<1024, 256>>>(k_.as<__nv_bfloat16>(), length, int(groups_ * kDim), padding, 2);
    const int32_t lengths[2] = {0, int32_t(length)};
    cudaMemcpy(lengths_.as<void>(), lengths, 8, cudaMemcpyHostToDevice);
    const std::vector<float> threshold(size_t(heads), 0.5f);
    cudaMemcpy(threshold_.as<void>(), threshold.data(), threshold.size() * 4,
               cudaMemcpyHostToDevice);
  }

  void score() const { report(block_scores(args_, nullptr)); }
  void select_blocks() const {
    SelectArgs args;
    args.scores = scores_.as<float>();
    args.threshold = threshold_.as<float>();
    args.cu_seqlens_q = args.cu_seqlens_k = lengths_.as<int32_t>();
    args.batch = 1;
    args.heads = heads_;
    args.query_blocks = query_blocks_;
    args.key_blocks = key_blocks_;
    args.options.block_size = args_.block_size;
    args.words = words_.as<uint32_t>();
    report(select(args, nullptr));
  }
  std::vector<float> scores() const {
    std::vector<float> scores(size_t(heads_ * query_blocks_ * key_blocks_));
    cudaMemcpy(scores.data(), scores_.as<void>(), scores.size() * 4, cudaMemcpyDeviceToHost);
    return scores;
  }
  int64_t workspace_bytes() const { return block_scores_workspace_bytes(args_); }

 private:
  static void report(CudaStatus status) {
    if (status != nullptr) std::fprintf(stderr, "%s\n", status);
  }
  ScoreArgs make_args(int padding, int64_t block) const {
    ScoreArgs args;
    args.cu_seqlens_q = args.cu_seqlens_k = lengths_.as<int32_t>();
    args.batch = 1;
    args.heads = heads_;
    args.kv_heads = groups_;
    args.head_dim = kDim;
    args.total_q = args.total_k = args.max_seqlen_q = args.max_seqlen_k = length_;
    args.scale = 1.0f / std::sqrt(float(kDim));
    args.q = q_.as<void>();
    args.q_token_stride = heads_ * kDim + padding;
    args.q_head_stride = args.k_head_stride = kDim;
    args.k = k_.as<void>();
    args.k_token_stride = groups_ * kDim + padding;
    args.estimator = parse_estimator(estimator_, 16, block, length_);
    args.block_size = block;
    args.scores = scores_.as<float>();
    args.score_heads = heads_;
    args.query_blocks = query_blocks_;
    args.key_blocks = key_blocks_;
    return args;
  }

  std::string estimator_;
  int64_t length_, heads_, groups_, query_blocks_, key_blocks_;
  Buffer q_, k_, lengths_, threshold_, scores_, words_;
  ScoreArgs args_;
  Buffer workspace_;
};

// The fast kernels against the simple ones, relative to the norm.
double fast_error(const std::string& estimator) {
  const Problem fast(estimator, 4096, 8, 0), simple(estimator, 4096, 8, 3);
  fast.score();
  simple.score();
  const std::vector<float> x = fast.scores(), y = simple.scores();
  double error = 0, norm = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    error += (double(x[i]) - double(y[i])) * (double(x[i]) - double(y[i]));
    norm += double(y[i]) * double(y[i]);
  }
  return std::sqrt(error / norm);
}

void run(const std::string& estimator,
         int64_t length,
         int64_t heads = kHeads,
         int64_t block = 128) {
  const Problem problem(estimator, length, heads, 0, block);
  const double score = median_ms([&] { problem.score(); }), ghz = clock_ghz();
  const double select = median_ms([&] { problem.select_blocks(); });
  const double both = median_ms([&] {
    problem.score();
    problem.select_blocks();
  });
  std::printf(
      "{\"estimator\": \"%s\", \"tokens\": %lld, \"heads\": %lld, \"block\": %lld, "
      "\"score_ms\": %.4f, \"select_ms\": %.4f, \"both_ms\": %.4f, \"ghz\": %.3f, "
      "\"workspace_mb\": %.1f, \"status\": \"%s\"}\n",
      estimator.c_str(), static_cast<long long>(length), static_cast<long long>(heads),
      static_cast<long long>(block), score, select, both, ghz,
      double(problem.workspace_bytes()) * 1e-6, cudaGetErrorString(cudaGetLastError()));
  std::fflush(stdout);
}

}  // namespace
}  // namespace longspur::kernels::xattn::cuda

int main(int argc, char** argv) {
  using namespace longspur::kernels::xattn::cuda;
  cudaDeviceProp device{};
  cudaGetDeviceProperties(&device, 0);
  std::printf("{\"device\": \"%s\"}\n", device.name);
  for (const char* estimator : {"antidiagonal:16", "sampled:16", "pooled:128+sampled:128+mean"})
    std::printf("{\"estimator\": \"%s\", \"error\": %.2e}\n", estimator, fast_error(estimator));
  if (argc > 2) {
    for (int i = 1; i + 1 < argc; i += 2) run(argv[i], std::atoll(argv[i + 1]));
    return 0;
  }
  for (const int64_t length : {32768, 131072, 262144}) run("antidiagonal:16", length);
  run("antidiagonal:16", 32768, kHeads, 64);
  for (const int64_t length : {8192, 16384, 32768}) run("sampled:16", length);
  for (const int64_t length : {32768, 131072, 262144}) run("pooled:128+sampled:128+mean", length);
  for (const char* estimator :
       {"pooled:128", "sampled:128", "pooled_plain:128+sampled:128", "mean"})
    run(estimator, 131072);
  run("antidiagonal:16", 1 << 20, 8);
  return 0;
}
