#include "kernels/common/cuda/device.h"

#include <gtest/gtest.h>

#include "kernels/common/cuda/device_test.cuh"

namespace longspur::kernels {
namespace {

__global__ void add_kernel(int* x, int by) { *x += by; }

struct Stream {
  Stream() { testing::check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking)); }
  ~Stream() { cudaStreamDestroy(stream); }
  cudaStream_t stream = nullptr;
};

TEST(DeviceCuda, CountsDevicesAndTheirMemory) {
  int count = -1;
  if (!testing::has_device()) {
    // No driver is an error with a text, no device is none.
    const CudaStatus status = device_count(count);
    EXPECT_TRUE(status != nullptr || count == 0);
    return;
  }
  ASSERT_EQ(device_count(count), nullptr);
  int64_t free = 0, total = 0;
  ASSERT_EQ(device_memory(0, free, total), nullptr);
  EXPECT_GT(free, 0);
  EXPECT_GE(total, free);
  EXPECT_NE(device_memory(count, free, total), nullptr);
  EXPECT_EQ(cudaGetLastError(), cudaSuccess);  // the error was reported, not left behind
}

TEST(DeviceCuda, ARecordingRunsWhenItIsLaunchedAndAsOftenAsThat) {
  LONGSPUR_REQUIRE_DEVICE();
  const testing::DeviceArray<int> x(std::vector<int>{0});
  const Stream s;
  LaunchGraph graph;
  EXPECT_FALSE(graph.ready());
  ASSERT_EQ(graph.begin(s.stream), nullptr);
  add_kernel<<<1, 1, 0, s.stream>>>(x.get(), 2);
  add_kernel<<<1, 1, 0, s.stream>>>(x.get(), 3);
  ASSERT_EQ(graph.end(s.stream), nullptr);
  EXPECT_TRUE(graph.ready());
  EXPECT_EQ(x.download()[0], 0);
  for (int i = 0; i < 3; ++i) ASSERT_EQ(graph.launch(s.stream), nullptr);
  EXPECT_EQ(x.download()[0], 15);
}

TEST(DeviceCuda, AnAbandonedRecordingLeavesTheStreamUsable) {
  LONGSPUR_REQUIRE_DEVICE();
  const testing::DeviceArray<int> x(std::vector<int>{0});
  const Stream s;
  LaunchGraph graph;
  ASSERT_EQ(graph.begin(s.stream), nullptr);
  add_kernel<<<1, 1, 0, s.stream>>>(x.get(), 2);
  graph.abandon(s.stream);
  EXPECT_FALSE(graph.ready());
  add_kernel<<<1, 1, 0, s.stream>>>(x.get(), 3);
  EXPECT_EQ(x.download()[0], 3);
}

}  // namespace
}  // namespace longspur::kernels
