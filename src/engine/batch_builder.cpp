#include "engine/batch_builder.h"

#include <algorithm>

#include "base/shape.h"
#include "engine/sequence.h"

namespace longspur::engine {

void BatchBuilder::clear() {
  for (auto* array : {&tokens_, &cu_seqlens_, &kv_lens_, &prompt_lens_, &rope_lens_, &output_rows_})
    array->clear();
  thresholds_.clear();
  cu_seqlens_.push_back(0);
  tables_.clear();
  finished_.clear();
}

void BatchBuilder::add(std::span<const int32_t> tokens,
                       int64_t end,
                       int64_t prompt_length,
                       const cache::BlockTable& table,
                       int64_t outputs,
                       Sequence* owner) {
  tokens_.insert(tokens_.end(), tokens.begin(), tokens.end());
  const auto past = int32_t(tokens_.size());
  cu_seqlens_.push_back(past);
  kv_lens_.push_back(int32_t(end));
  prompt_lens_.push_back(int32_t(prompt_length));
  rope_lens_.push_back(int32_t(std::max(end, prompt_length)));
  const auto threshold = owner != nullptr ? owner->request.attention_threshold : std::nullopt;
  thresholds_.push_back(threshold ? float(*threshold) : runtime::ForwardBatch::kPlanThreshold);
  tables_.push_back(&table);
  for (int32_t row = past - int32_t(outputs); row < past; ++row) output_rows_.push_back(row);
  if (outputs == 1 && owner != nullptr) finished_.push_back(owner);
}

void BatchBuilder::build(int64_t layers, int64_t kv_heads) {
  const int64_t sequences = int64_t(tables_.size());
  int64_t max_blocks = 0;
  for (int32_t length : kv_lens_)
    max_blocks = std::max(max_blocks, ceil_div(length, cache::kBlockTokens));
  const int64_t sides = tables_.empty() ? 0 : tables_.front()->side_blocks();
  max_blocks += sides;
  block_table_.assign(size_t(layers * sequences * kv_heads * max_blocks), -1);
  for (int64_t layer = 0; layer < layers; ++layer) {
    for (int64_t b = 0; b < sequences; ++b) {
      const int64_t blocks = ceil_div(kv_lens_[size_t(b)], cache::kBlockTokens);
      for (int64_t head = 0; head < kv_heads; ++head) {
        int32_t* row =
            block_table_.data() + ((layer * sequences + b) * kv_heads + head) * max_blocks;
        for (int64_t block = 0; block < blocks; ++block) {
          row[block] = tables_[size_t(b)]->page(block, layer * kv_heads + head);
        }
        for (int64_t side = 0; side < sides; ++side) {
          row[max_blocks - sides + side] =
              tables_[size_t(b)]->side_page(side, layer * kv_heads + head);
        }
      }
    }
  }
  view_ = {tokens_,    cu_seqlens_,  kv_lens_,     rope_lens_, block_table_,
           max_blocks, output_rows_, prompt_lens_, thresholds_};
}

}  // namespace longspur::engine
