// What the CUDA executor takes from its device, known without one: the engine plans with these
// figures, the executor allocates by them.
#pragma once

#include <cstdint>
#include <vector>

#include "io/files/model_config.h"
#include "models/decoder_tensors.h"
#include "runtime/plugin.h"

namespace longspur::runtime {

// The bound of a step's key lengths is a multiple of this, so that steps keep their shape, and with
// it their recorded launches, for as many tokens.
inline constexpr int64_t kCudaLengthStep = 512;

// Whether matrices that are stacked into one stay in NVFP4. The embedding never does: its rows are
// read one by one.
bool cuda_keeps_nvfp4(const std::vector<models::TensorSource>& stack, bool fp32);
int64_t cuda_weights_bytes(const models::DecoderTensors& tensors, bool fp32);
int64_t cuda_page_bytes(const io::ModelConfig& config, bool fp32);

// Elements of each activation buffer. `wide` holds what one product writes and the next step
// reads (qkv; gate and up), `inner` what follows it (attention's output; SwiGLU's).
struct CudaActivations {
  int64_t hidden;   // [T, C] fp32: the residual stream
  int64_t picked;   // [T, C] fp32: its rows whose logits are wanted
  int64_t normed;   // [T, max(C, H D)]
  int64_t wide;     // [T, max((H + 2 G) D, 2 F)]
  int64_t inner;    // [T, max(H D, F)]
  int64_t delta;    // [T, C]
  int64_t logits;   // [kLogitRows, V] fp32
  int64_t scratch;  // floats of paged attention
};
CudaActivations cuda_activations(const io::ModelConfig& config,
                                 const DeviceExecutorOptions& options);
// With what prefill, the sampler and torch's libraries take on top.
int64_t cuda_workspace_bytes(const io::ModelConfig& config, const DeviceExecutorOptions& options);

}  // namespace longspur::runtime
