#include "ops/block_sparse_shape.h"

#include "base/error.h"
#include "base/shape.h"
#include "kernels/common/block_mask.h"
#include "ops/checks.h"

namespace longspur::ops {

void check_block_size(std::string_view op, int64_t block_size) {
  require(block_size == 64 || block_size == 128, op, ": block_size: found ", block_size,
          ", expected 64 or 128");
}

void check_block_sparse(std::string_view op, const BlockSparseArgs& args) {
  check_attention(op, args.dense);
  check_block_size(op, args.block_size);
  const at::Tensor& mask = args.block_mask;
  check_dim(op, "block_mask", mask, 4, "[B, H or Hkv or 1, nQ, nK]");
  check_dtype(op, "block_mask", mask, at::kBool);
  check_device(op, "block_mask", mask, "q", args.dense.q);
  const auto heads = mask.sym_size(1);
  if (heads != 1 && heads != args.dense.k.sym_size(1) && heads != args.dense.q.sym_size(1)) {
    throw Error(concat(op, ": block_mask: found ", shown_size(heads), " heads, expected ",
                       shown_size(args.dense.q.sym_size(1)), " as q has, ",
                       shown_size(args.dense.k.sym_size(1)), " as k has, or 1"));
  }
  const c10::SymInt shape[] = {args.dense.cu_seqlens_q.sym_size(0) - 1, heads,
                               ceil_div(args.dense.max_seqlen_q, kernels::kQueryBlock),
                               ceil_div(args.dense.max_seqlen_k, args.block_size)};
  check_shape(op, "block_mask", mask, shape,
              "sequences, heads, blocks of 128 queries and blocks of keys of the longest");
}

}  // namespace longspur::ops
