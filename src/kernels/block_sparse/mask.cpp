// Masks of blocks: bytes to bits and back, what each mode of a head lists, and their checks.
#include <algorithm>
#include <cstring>

#include "base/error.h"
#include "kernels/block_sparse/api.h"

namespace longspur::kernels::block_sparse {

namespace {

constexpr int64_t kWordBits = 32;

int64_t length(const int32_t* begins, int64_t b) { return begins[b + 1] - begins[b]; }

int64_t longest(const int32_t* begins, int64_t batch) {
  int64_t most = 0;
  for (int64_t b = 0; b < batch; ++b) most = std::max(most, length(begins, b));
  return most;
}

void set_blocks(uint32_t* row, int64_t begin, int64_t end) {
  for (int64_t j = begin; j < end; ++j) row[j / kWordBits] |= uint32_t{1} << (j % kWordBits);
}

}  // namespace

void pack_mask(const uint8_t* blocks, int64_t rows, int64_t key_blocks, uint32_t* words) {
  const int64_t row_words = BlockMask::words_of(key_blocks);
  if (rows * row_words == 0) return;
  std::memset(words, 0, size_t(rows * row_words) * sizeof(uint32_t));
  for (int64_t r = 0; r < rows; ++r, blocks += key_blocks, words += row_words) {
    for (int64_t j = 0; j < key_blocks; ++j)
      words[j / kWordBits] |= uint32_t{blocks[j] != 0} << (j % kWordBits);
  }
}

void unpack_mask(const uint32_t* words, int64_t rows, int64_t key_blocks, uint8_t* blocks) {
  const int64_t row_words = BlockMask::words_of(key_blocks);
  for (int64_t r = 0; r < rows; ++r, blocks += key_blocks, words += row_words) {
    for (int64_t j = 0; j < key_blocks; ++j) blocks[j] = has_block(words, j) ? 1 : 0;
  }
}

void check_mask(const BlockMask& mask, const attention::VarlenShape& shape) {
  require(mask.block_size == 64 || mask.block_size == 128, "block mask: block_size: found ",
          mask.block_size, ", expected 64 or 128");
  require(mask.heads == shape.heads || mask.heads == shape.kv_heads || mask.heads == 1,
          "block mask: heads: found ", mask.heads, ", expected ", shape.heads, ", ", shape.kv_heads,
          " or 1");
  const int64_t query_blocks = ceil_div(longest(shape.cu_seqlens_q, shape.batch), kQueryBlock);
  require(mask.query_blocks >= query_blocks, "block mask: query blocks: found ", mask.query_blocks,
          ", expected at least ", query_blocks);
  const int64_t key_blocks = ceil_div(longest(shape.cu_seqlens_k, shape.batch), mask.block_size);
  const int64_t row_words = BlockMask::words_of(key_blocks);
  require(mask.row_words >= row_words, "block mask: words a row: found ", mask.row_words,
          ", expected at least ", row_words, " for ", key_blocks, " blocks of keys");
  require(mask.words != nullptr || query_blocks * key_blocks == 0,
          "block mask: words: found none, expected ", shape.batch * mask.heads * query_blocks,
          " rows");
}

void apply_head_plans(const HeadPlan* plans,
                      const attention::VarlenShape& shape,
                      const BlockMask& mask,
                      uint32_t* words) {
  for (int64_t h = 0; h < mask.heads; ++h) {
    const HeadPlan& plan = plans[h];
    if (plan.mode == HeadMode::kList) continue;
    require(plan.sink >= 0 && plan.local >= 0, "head plan ", h, ": sink, local: found ", plan.sink,
            ", ", plan.local, ", expected at least 0");
    for (int64_t b = 0; b < shape.batch; ++b) {
      const int64_t n = length(shape.cu_seqlens_q, b), m = length(shape.cu_seqlens_k, b);
      for (int64_t i = 0; i < mask.query_blocks; ++i) {
        uint32_t* row = words + ((b * mask.heads + h) * mask.query_blocks + i) * mask.row_words;
        std::memset(row, 0, size_t(mask.row_words) * sizeof(uint32_t));
        if (i * kQueryBlock >= n) continue;
        const int64_t end = visible_blocks(i, n, m, mask.block_size, shape.causal).end;
        const bool dense = plan.mode == HeadMode::kDense;
        set_blocks(row, 0, dense ? end : std::min(plan.sink, end));
        if (!dense) set_blocks(row, std::max<int64_t>(0, end - plan.local), end);
      }
    }
  }
}

}  // namespace longspur::kernels::block_sparse
