#include "engine/device.h"

#include <gtest/gtest.h>

#include <cstdlib>

#include "base/error.h"
#include "engine/memory_plan.h"

namespace longspur::engine {
namespace {

TEST(Device, ReadsNames) {
  EXPECT_FALSE(parse_device("cpu").cuda);
  EXPECT_TRUE(parse_device("cuda").cuda);
  EXPECT_EQ(parse_device("cuda").index, 0);
  EXPECT_EQ(parse_device("cuda:0").index, 0);
  EXPECT_EQ(parse_device("cuda:17").index, 17);
}

TEST(Device, RefusesOtherNames) {
  for (const char* text : {"", "gpu", "CUDA", "cpu:0", "cuda:", "cuda:-1", "cuda:1x", "cuda: 1",
                           "cuda:+1", "cuda:99999999999", "cuda0", "mps"}) {
    EXPECT_THROW(parse_device(text), UsageError) << text;
    EngineOptions options;
    options.device = text;
    EXPECT_THROW(validate_options(options), UsageError) << text;
  }
}

TEST(Device, AMissingPluginIsOneLineThatSaysWhereItWasLookedFor) {
  ::setenv("LONGSPUR_CUDA_LIBRARY", "/nowhere/liblongspur_cuda.so", 1);
  EngineOptions options;
  options.device = "cuda";
  try {
    device_memory_needs(options, {}, {}, {}, 128);
    FAIL() << "no error";
  } catch (const UnsupportedError& error) {
    const std::string text = error.what();
    EXPECT_EQ(text.find("device cuda: /nowhere/liblongspur_cuda.so cannot be loaded"), 0u) << text;
    EXPECT_EQ(text.find('\n'), std::string::npos) << text;
  }
  ::unsetenv("LONGSPUR_CUDA_LIBRARY");
}

}  // namespace
}  // namespace longspur::engine
