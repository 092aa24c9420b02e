// The CUDA executor lives in a library of its own, loaded when a CUDA device is asked for, so that
// the CPU program neither links nor loads a GPU runtime. This is the border: one exported table.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "io/files/model_config.h"
#include "models/decoder_tensors.h"
#include "runtime/attention_plan.h"
#include "runtime/executor.h"

namespace longspur::runtime {

struct DeviceExecutorOptions {
  int device = 0;            // index
  bool fp32 = false;         // reference arithmetic
  int64_t max_tokens = 512;  // of one forward
  int64_t max_sequences = 16;
  int64_t max_context = 0;
  AttentionPlan attention = {};
};

struct DeviceMemory {
  int64_t free = 0;
  int64_t total = 0;
};

struct DevicePlugin {
  std::unique_ptr<Executor> (*make)(const io::ModelConfig& config,
                                    const models::DecoderTensors& tensors,
                                    const DeviceExecutorOptions& options,
                                    const std::function<void(int64_t)>& progress);
  // Throws UnsupportedError when there is no such device.
  DeviceMemory (*memory)(int device);
  std::string (*name)(int device);  // "NVIDIA H100 80GB HBM3"; throws likewise
};

// The table's symbol; its number changes with the border, so that an old library is not taken.
inline constexpr const char* kCudaPluginSymbol = "longspur_cuda_plugin_4";

// $LONGSPUR_CUDA_LIBRARY, else liblongspur_cuda.so in ../lib beside the binary's folder.
std::string cuda_plugin_path();

// Loads that library once.
// Throws UnsupportedError naming where it looked and what the loader said.
const DevicePlugin& load_cuda_plugin();

}  // namespace longspur::runtime
