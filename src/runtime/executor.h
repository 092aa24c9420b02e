// Runs a model over a packed batch with a paged cache. One implementation a device.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "kernels/sampling/api.h"

namespace longspur::runtime {

// Tokens of several sequences, packed. Sequence b owns tokens cu_seqlens[b] .. cu_seqlens[b + 1];
// they are the last ones of its kv_lens[b] tokens, which all have pages.
struct ForwardBatch {
  std::span<const int32_t> tokens;      // [T]
  std::span<const int32_t> cu_seqlens;  // [B + 1]
  std::span<const int32_t> kv_lens;     // [B]
  // [B] length the dynamic rope scaling is taken at: of the whole prompt while it is prefilled.
  std::span<const int32_t> rope_lens;
  std::span<const int32_t> block_table;  // [layers, B, G, max_blocks] page ids
  // Entries of a row; its last ones are the sequence's side pages, if the cache has them.
  int64_t max_blocks = 0;
  std::span<const int32_t> output_rows;  // [R] rows whose logits are wanted, rising
};

// What a draw on the device gives; a row that cannot be drawn from (a NaN logit) says why.
struct Draw {
  kernels::sampling::SampleResult result;
  std::string error;
};

class Executor {
 public:
  virtual ~Executor() = default;

  virtual int64_t weights_bytes() const = 0;
  virtual int64_t workspace_bytes() const = 0;
  // Bytes of one page: 64 tokens of one KV head of one layer, keys and values.
  virtual int64_t page_bytes() const = 0;
  // The page pool; called once, before the first forward.
  virtual void allocate_pages(int64_t pages) = 0;

  // Computes the batch, appending to the cache. At most the max_tokens the executor was made for.
  virtual void forward(const ForwardBatch& batch) = 0;
  // Logits [count, V] fp32 on the host of outputs first .. first + count of the last forward; valid
  // until the next call. count <= kLogitRows.
  static constexpr int64_t kLogitRows = 32;
  virtual const float* logits(int64_t first, int64_t count) = 0;

  // Draws a token from each output of the last forward where the logits are: args[i] (its logits
  // are not read) to draws[i]. False, and nothing drawn: take logits() and draw on the host.
  virtual bool sample(std::span<const kernels::sampling::SampleArgs> args, std::span<Draw> draws) {
    static_cast<void>(args);
    static_cast<void>(draws);
    return false;
  }
};

}  // namespace longspur::runtime
