// Which device runs the model: its name read, its memory asked for, its executor made.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "base/thread_pool.h"
#include "engine/engine.h"
#include "io/files/model_config.h"
#include "kernels/nvfp4/api.h"
#include "models/decoder_tensors.h"
#include "runtime/executor.h"

namespace longspur::engine {

struct Device {
  bool cuda = false;
  int index = 0;
};

// "cpu", "cuda" (the first) or "cuda:INDEX"; UsageError otherwise.
Device parse_device(const std::string& text);

// The rule by which activations become NVFP4, or none; UsageError for any other text.
std::optional<kernels::nvfp4::Rule> activation_rule(const std::string& activations);

// What a model takes on the device, from its headers, and what the device has.
struct DeviceMemoryNeeds {
  int64_t weights_bytes = 0;
  int64_t workspace_bytes = 0;
  int64_t page_bytes = 0;
  int64_t side_blocks = 0;  // of each sequence, beside those of its tokens
  // Bytes the cache may take unless the caller names a number, and the most it can be given; the
  // latter is 0 where memory can be swapped and nobody knows.
  int64_t cache_share = 0;
  int64_t cache_limit = 0;
};

// Throws UnsupportedError when the device is not there, Error when it cannot hold the weights.
DeviceMemoryNeeds device_memory_needs(const EngineOptions& options,
                                      const runtime::AttentionPlan& attention,
                                      const io::ModelConfig& config,
                                      const models::DecoderTensors& tensors,
                                      int64_t max_context);

// `progress` gets the bytes of stored weights that are done.
std::unique_ptr<runtime::Executor> make_executor(const EngineOptions& options,
                                                 const runtime::AttentionPlan& attention,
                                                 const io::ModelConfig& config,
                                                 const models::DecoderTensors& tensors,
                                                 int64_t max_context,
                                                 ThreadPool& pool,
                                                 const std::function<void(int64_t)>& progress);

}  // namespace longspur::engine
