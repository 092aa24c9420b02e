// Quantisation of a bf16 matrix beside a kernel that moves the same bytes without arithmetic, a
// copy and a cast to E4M3, all interleaved in one run over buffers that rotate past L2. Times are
// medians of events around eight launches each. The picks are checked against the strict kernels
// first. Prints a JSON line a measurement.  nvfp4_cuda_bench [rows K]
#include <cuda_bf16.h>
#include <cuda_fp8.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <functional>
#include <string>
#include <vector>

#include "kernels/nvfp4/codec.h"
#include "kernels/nvfp4/cuda/quantize.h"

namespace longspur::kernels::nvfp4::cuda {
namespace {

constexpr int kBuffers = 4, kLaunches = 8;

// Normal numbers; every 97th eight times larger.
__global__ void fill_kernel(__nv_bfloat16* x, int64_t n, uint32_t seed) {
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < n;
       i += int64_t(gridDim.x) * blockDim.x) {
    uint32_t h[2];
    for (int j = 0; j < 2; ++j) {
      uint32_t v = uint32_t(2 * i + j) * 2654435761u ^ seed;
      v = (v ^ v >> 16) * 0x7feb352du;
      v = (v ^ v >> 15) * 0x846ca68bu;
      h[j] = v ^ v >> 16;
    }
    const float u = (float(h[0] >> 8) + 1.0f) * 0x1p-24f, angle = float(h[1] >> 8) * 0x1p-24f;
    const float normal = sqrtf(-2.0f * logf(u)) * cosf(6.2831853f * angle);
    x[i] = __float2bfloat16(normal * (i % 97 == 0 ? 8.0f : 1.0f));
  }
}

__global__ void copy_kernel(const uint4* from, uint4* to, int64_t n) {
  const int64_t i = (int64_t(blockIdx.x) * 256 + threadIdx.x) * 2;
  if (i + 1 >= n) return;
  const uint4 a = __ldcs(from + i), b = __ldcs(from + i + 1);
  to[i] = a, to[i + 1] = b;
}

__global__ void cast_kernel(const uint4* from, uint4* to, int64_t n) {
  const int64_t i = int64_t(blockIdx.x) * 256 + threadIdx.x;  // 16 elements
  if (i >= n) return;
  const uint4 v[2] = {__ldcs(from + 2 * i), __ldcs(from + 2 * i + 1)};
  const auto* pairs = reinterpret_cast<const __nv_bfloat162*>(v);
  uint4 out;
  auto* bytes = reinterpret_cast<__nv_fp8x2_e4m3*>(&out);
  for (int j = 0; j < 8; ++j) bytes[j] = __nv_fp8x2_e4m3(pairs[j]);
  to[i] = out;
}

// Reads 32 bytes, writes 8 and 1 a block of 16, as quantisation does.
__global__ void same_traffic_kernel(const uint4* from, uint2* codes, uint8_t* scales, int64_t n) {
#pragma unroll
  for (int j = 0; j < 2; ++j) {
    const int64_t i = (int64_t(blockIdx.x) * 2 + j) * 256 + threadIdx.x;
    if (i >= n) return;
    const uint4 a = __ldcs(from + 2 * i), b = __ldcs(from + 2 * i + 1);
    codes[i] = {a.x ^ a.z ^ b.x, a.y ^ a.w ^ b.y};
    scales[i] = uint8_t(b.z ^ b.w);
  }
}

struct Measured {
  std::string name;
  std::function<void(int)> launch;
  std::vector<double> us;
};

// Rounds over all, so that clocks and temperature are the same for each.
void measure(std::vector<Measured>& all, double seconds_each) {
  cudaEvent_t begin, end;
  cudaEventCreate(&begin);
  cudaEventCreate(&end);
  const auto time_once = [&](const Measured& m) {
    cudaEventRecord(begin);
    for (int i = 0; i < kLaunches; ++i) m.launch(i);
    cudaEventRecord(end);
    cudaEventSynchronize(end);
    float ms = 0;
    cudaEventElapsedTime(&ms, begin, end);
    return double(ms) * 1000 / kLaunches;
  };
  for (int round = 0; round < 3; ++round) {
    for (Measured& m : all) {
      for (double sum = 0; sum < 0.12e6 / kLaunches;) sum += time_once(m);
      for (double sum = 0; sum < seconds_each * 1e6 / kLaunches / 3;) {
        m.us.push_back(time_once(m));
        sum += m.us.back();
      }
    }
  }
}

struct Device {
  __nv_bfloat16* x[kBuffers];
  uint8_t *codes[kBuffers], *scales[kBuffers];
  float *multiplier, *weight;
  void *workspace, *copy;
};

Quantize arguments(
    const Device& d, int i, int64_t rows, int64_t k, Rule rule, Amax from, bool strict) {
  Quantize args;
  args.source = {d.x[i % kBuffers], DType::kBF16, rows, k, k, false};
  args.recipe.rule = rule;
  args.amax_from = from;
  args.strict = strict;
  args.out = {d.codes[i % kBuffers], d.scales[i % kBuffers], d.multiplier, false};
  return args;
}

std::vector<uint8_t> download(const uint8_t* from, int64_t n) {
  std::vector<uint8_t> bytes(static_cast<size_t>(n));
  cudaMemcpy(bytes.data(), from, bytes.size(), cudaMemcpyDeviceToHost);
  return bytes;
}

// Share of scale codes that differ from the strict kernel's; -1 when a code differs under one
// scale.
double picks(const Device& d, int64_t rows, int64_t k, Rule rule, Amax from) {
  const int64_t blocks = rows * k / kBlock;
  std::vector<uint8_t> codes[2], scales[2];
  for (const bool strict : {false, true}) {
    cudaMemset(d.codes[0], 0xff, size_t(rows * k / 2));
    quantize(arguments(d, 0, rows, k, rule, from, strict), d.workspace, nullptr);
    codes[strict] = download(d.codes[0], rows * k / 2);
    scales[strict] = download(d.scales[0], blocks);
  }
  int64_t differ = 0;
  for (int64_t b = 0; b < blocks; ++b) {
    if (scales[0][size_t(b)] != scales[1][size_t(b)])
      ++differ;
    else if (!std::equal(&codes[0][size_t(b) * 8], &codes[0][size_t(b) * 8] + 8,
                         &codes[1][size_t(b) * 8]))
      return -1;
  }
  return double(differ) / double(blocks);
}

Device allocate(int64_t rows, int64_t k) {
  Device d{};
  bool good = true;
  for (int i = 0; i < kBuffers; ++i) {
    good = good && cudaMalloc(&d.x[i], size_t(rows * k * 2)) == cudaSuccess &&
           cudaMalloc(&d.codes[i], size_t(rows * k / 2)) == cudaSuccess &&
           cudaMalloc(&d.scales[i], size_t(rows * k / kBlock)) == cudaSuccess;
    if (good) fill_kernel<<<2048, 256>>>(d.x[i], rows * k, uint32_t(i) * 77u);
  }
  good = good && cudaMalloc(&d.multiplier, size_t(rows * 4)) == cudaSuccess &&
         cudaMalloc(&d.weight, size_t(k * 4)) == cudaSuccess &&
         cudaMemset(d.weight, 0x3f, size_t(k * 4)) == cudaSuccess &&  // 0.747
         cudaMalloc(&d.workspace, size_t(rows * 4 + 8)) == cudaSuccess &&
         cudaMalloc(&d.copy, size_t(rows * k * 2)) == cudaSuccess;
  if (!good) {
    std::fprintf(stderr, "nvfp4_quantize_cuda_bench: no device memory\n");
    std::exit(1);
  }
  return d;
}

std::vector<Measured> baselines(const Device& d, int64_t n) {
  const auto grid = [](int64_t items, int64_t each) { return unsigned((items + each - 1) / each); };
  const auto in = [d](int i) { return reinterpret_cast<const uint4*>(d.x[i % kBuffers]); };
  auto* copy = static_cast<uint4*>(d.copy);
  return {
      {"same_traffic",
       [=](int i) {
         same_traffic_kernel<<<grid(n / 16, 512), 256>>>(
             in(i), reinterpret_cast<uint2*>(d.codes[i % kBuffers]), d.scales[i % kBuffers],
             n / 16);
       },
       {}},
      {"copy", [=](int i) { copy_kernel<<<grid(n / 8, 512), 256>>>(in(i), copy, n / 8); }, {}},
      {"cast_e4m3",
       [=](int i) { cast_kernel<<<grid(n / 16, 256), 256>>>(in(i), copy, n / 16); },
       {}},
  };
}

// Fused steps, both orientations at once, and back.
std::vector<Measured> others(const Device& d, int64_t rows, int64_t k) {
  const auto out = [d](int i) {
    return Quantized{d.codes[i % kBuffers], d.scales[i % kBuffers], d.multiplier, false};
  };
  return {
      {"rms_norm + four_over_six row",
       [=](int i) {
         rms_norm_quantize(
             {d.x[i % kBuffers], DType::kBF16, rows, k, k, d.weight, 1e-5f, {}, out(i)}, nullptr);
       },
       {}},
      {"swiglu [rows, K/2] + four_over_six row",
       [=](int i) {
         swiglu_quantize({d.x[i % kBuffers], DType::kBF16, rows, k / 2, k, {}, out(i)}, nullptr);
       },
       {}},
      {"four_over_six and transposed, tensor",
       [=](int i) {
         QuantizeBoth args;
         args.source = {d.x[i % kBuffers], DType::kBF16, rows, k, k, false};
         args.out = out(i);
         args.transposed_out = out(i + 1);
         quantize_both(args, d.workspace, nullptr);
       },
       {}},
      {"dequantize bf16",
       [=](int i) {
         dequantize({d.codes[i % kBuffers], d.scales[i % kBuffers], d.multiplier, false, rows, k,
                     DType::kBF16, d.copy},
                    false, nullptr);
       },
       {}},
  };
}

int run(int64_t rows, int64_t k) {
  cudaDeviceProp device{};
  if (cudaGetDeviceProperties(&device, 0) != cudaSuccess) {
    std::fprintf(stderr, "nvfp4_quantize_cuda_bench: no device\n");
    return 1;
  }
  const Device d = allocate(rows, k);
  struct Case {
    const char* name;
    Rule rule;
    Amax from;
    bool strict;
  };
  const Case cases[] = {
      {"static_6 row", Rule::kStatic6, Amax::kRow, false},
      {"four_over_six row", Rule::kFourOverSix, Amax::kRow, false},
      {"sweep row", Rule::kSweep, Amax::kRow, false},
      {"static_6 tensor", Rule::kStatic6, Amax::kTensor, false},
      {"four_over_six tensor", Rule::kFourOverSix, Amax::kTensor, false},
      {"sweep tensor", Rule::kSweep, Amax::kTensor, false},
      {"four_over_six row strict", Rule::kFourOverSix, Amax::kRow, true},
  };
  std::vector<Measured> all = baselines(d, rows * k);
  std::vector<double> share(all.size(), 0.0);
  for (const Case& c : cases) {
    share.push_back(picks(d, rows, k, c.rule, c.from));
    all.push_back({c.name,
                   [=](int i) {
                     quantize(arguments(d, i, rows, k, c.rule, c.from, c.strict), d.workspace,
                              nullptr);
                   },
                   {}});
  }
  for (Measured& m : others(d, rows, k)) all.push_back(m);
  share.resize(all.size(), 0.0);
  measure(all, 0.2);
  std::vector<double> medians;
  for (Measured& m : all) {
    std::sort(m.us.begin(), m.us.end());
    medians.push_back(m.us[m.us.size() / 2]);
  }
  char date[16];
  const std::time_t now = std::time(nullptr);
  std::strftime(date, sizeof date, "%Y-%m-%d", std::gmtime(&now));
  std::printf(
      "{\n \"title\": \"NVFP4 quantisation on CUDA, bf16 [%lld, %lld]\",\n"
      " \"device\": \"%s\",\n \"date\": \"%s\",\n"
      " \"baseline\": \"a kernel that moves the same bytes without arithmetic, in the same run\",\n"
      " \"note\": \"sustained, buffers rotated past L2; picks: blocks whose scale differs from the "
      "exact selection\",\n \"columns\": {\"kernel\": \"kernel\", \"us\": \"us\", "
      "\"ratio\": \"of same traffic\", \"picks\": \"picks that differ\"},\n \"rows\": [",
      static_cast<long long>(rows), static_cast<long long>(k), device.name, date);
  for (size_t i = 0; i < all.size(); ++i)
    std::printf("%s\n  {\"kernel\": \"%s\", \"us\": %.2f, \"ratio\": %.3f, \"picks\": \"%.1e\"}",
                i == 0 ? "" : ",", all[i].name.c_str(), medians[i], medians[i] / medians[0],
                share[i]);
  std::printf("\n ]\n}\n");
  const cudaError_t error = cudaDeviceSynchronize();
  if (error != cudaSuccess)
    std::fprintf(stderr, "nvfp4_quantize_cuda_bench: %s\n", cudaGetErrorString(error));
  return error == cudaSuccess && *std::min_element(share.begin(), share.end()) >= 0 ? 0 : 1;
}

}  // namespace
}  // namespace longspur::kernels::nvfp4::cuda

int main(int argc, char** argv) {
  const int64_t rows = argc == 3 ? std::atoll(argv[1]) : 8192,
                k = argc == 3 ? std::atoll(argv[2]) : 8192;
  return longspur::kernels::nvfp4::cuda::run(rows, k);
}
