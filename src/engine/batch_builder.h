// Collects the pieces of one step into the packed arrays of a runtime::ForwardBatch.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "cache/block_manager.h"
#include "runtime/executor.h"

namespace longspur::engine {

struct Sequence;

class BatchBuilder {
 public:
  void clear();
  // Tokens that end at position `end` of a sequence with a prompt of `prompt_length`, of which the
  // last `outputs` are outputs; `owner` is remembered when there is one.
  void add(std::span<const int32_t> tokens,
           int64_t end,
           int64_t prompt_length,
           const cache::BlockTable& table,
           int64_t outputs,
           Sequence* owner = nullptr);
  void build(int64_t layers, int64_t kv_heads);

  const runtime::ForwardBatch& view() const { return view_; }
  const std::vector<Sequence*>& finished() const { return finished_; }  // owner of each output row

 private:
  std::vector<int32_t> tokens_, cu_seqlens_, kv_lens_, prompt_lens_, rope_lens_, output_rows_,
      block_table_;
  std::vector<float> thresholds_;
  std::vector<const cache::BlockTable*> tables_;
  std::vector<Sequence*> finished_;
  runtime::ForwardBatch view_;
};

}  // namespace longspur::engine
