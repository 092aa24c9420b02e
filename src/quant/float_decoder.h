// The decoder in fp32 on the CPU over whole windows of text, one layer at a time: what calibration
// and the measurement of quality run. Same definition (models/decoder.h) and kernels as inference;
// no cache, and the activations of all windows stay in memory between two layers.
#pragma once

#include <functional>
#include <optional>
#include <span>
#include <vector>

#include "base/aligned_buffer.h"
#include "io/files/model_config.h"
#include "kernels/nvfp4/api.h"
#include "quant/float_layer.h"

namespace longspur::quant {

// Sees what each product reads, before it does, and may still change the product's weights. x: [T,
// K]
class InputObserver {
 public:
  virtual ~InputObserver() = default;
  virtual void reads(Site site, const Matrix& x) = 0;
};

// Sees attention: heads after norms and rotation, q [H D], k [G D], v [G D] side by side, and what
// came of them. qkv: [T, (H + 2 G) D], out: [T, H D]
class AttentionObserver {
 public:
  virtual ~AttentionObserver() = default;
  virtual void attends(std::span<const int32_t> cu_seqlens,
                       const Matrix& qkv,
                       const Matrix& out) = 0;
};

class FloatDecoder {
 public:
  // Borrows all three.
  FloatDecoder(const io::ModelConfig& config,
               const models::DecoderTensors& tensors,
               ThreadPool& pool);

  const io::ModelConfig& config() const { return config_; }
  ThreadPool& pool() const { return pool_; }
  // Longest window that the layers' attention covers.
  int64_t max_window() const;

  // Activations of windows of text, each a sequence of its own.
  struct Batch {
    std::vector<int32_t> cu_seqlens;  // [B + 1]
    Matrix hidden;                    // [T, C]
  };
  // Throws Error on an empty or too long window and on a token outside the vocabulary.
  Batch embed(std::span<const std::vector<int32_t>> windows) const;

  struct LayerOptions {
    InputObserver* observer = nullptr;
    AttentionObserver* attention = nullptr;
    // Quantise what each product reads, a multiplier a row (W4A4), with this recipe.
    const kernels::nvfp4::Recipe* activations = nullptr;
  };
  // Moves the batch through layer `index`, whose weights are `layer`.
  void run_layer(size_t index,
                 const PackedLayer& layer,
                 Batch& batch,
                 const LayerOptions& options) const;

  // Logits [rows, V] of rows begin .. begin + rows of a batch that left the last layer.
  Matrix logits(const Batch& batch, int64_t begin, int64_t rows) const;

 private:
  void load_head() const;

  const io::ModelConfig& config_;
  const models::DecoderTensors& tensors_;
  ThreadPool& pool_;
  mutable std::unique_ptr<kernels::qgemm::PackedWeight> head_;  // at the first logits()
  std::vector<float> final_norm_;
};

// Rounds each row of x to NVFP4 and back, a multiplier a row. Threads share the rows.
void round_activations(Matrix& x, const kernels::nvfp4::Recipe& recipe, ThreadPool& pool);

}  // namespace longspur::quant
