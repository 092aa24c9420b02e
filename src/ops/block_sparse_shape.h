// The checks of block-sparse attention that do not need values; results are as of
// ops/attention_shape.h.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string_view>

#include "ops/attention_shape.h"

namespace longspur::ops {

struct BlockSparseArgs {
  AttentionArgs dense;
  const at::Tensor& block_mask;  // [B, H or G or 1, nQ, nK] bool
  int64_t block_size;
};

void check_block_size(std::string_view op, int64_t block_size);
void check_block_sparse(std::string_view op, const BlockSparseArgs& args);

}  // namespace longspur::ops
